package fsm

import (
	"iter"
	"slices"
	"sort"
	"strings"
)

var _ View = (*State)(nil)

// ClusterID returns the cluster's name; empty before OpenCluster.
func (s *State) ClusterID() string { return s.clusterID }

// Stopped reports whether a ClusterStop is in force.
func (s *State) Stopped() bool { return s.stopped }

// Office returns the current leader, as the log knows it.
func (s *State) Office() Office { return s.office }

// Head returns the end of the history.
func (s *State) Head() Head { return s.head }

// Recovery returns the last Recover, and false when there was none.
func (s *State) Recovery() (Recover, bool) {
	if s.recovery == nil {
		return Recover{}, false
	}
	return *s.recovery, true
}

// Server returns one row of the server table.
func (s *State) Server(id uint64) (Server, bool) {
	if row := s.server(id); row != nil {
		return *row, true
	}
	return Server{}, false
}

// Servers returns the server table by id.
func (s *State) Servers() []Server { return slices.Clone(s.servers) }

// LowestUp returns the lowest id of a member that is up, 0 when there is none.
func (s *State) LowestUp() uint64 {
	for i := range s.servers {
		if s.servers[i].Member && s.servers[i].Up {
			return s.servers[i].ID
		}
	}
	return 0
}

// Job returns the last job, open or closed, and false when none was opened yet.
func (s *State) Job() (Job, bool) {
	if s.job == nil {
		return Job{}, false
	}
	return s.job.clone(), true
}

// Counts returns the partition of that job; zero when there is none.
func (s *State) Counts() Counts { return s.work.counts() }

// Grant returns a grant of the current job.
func (s *State) Grant(id uint64) (Grant, bool) {
	if g := s.work.grant(id); g != nil {
		return g.Grant, true
	}
	return Grant{}, false
}

// Grants returns the grants of the current job by id.
func (s *State) Grants() iter.Seq[Grant] {
	return func(yield func(Grant) bool) {
		for _, g := range s.work.grants {
			if !yield(g.Grant) {
				return
			}
		}
	}
}

// LastGrantID returns the id of the last grant, over all jobs.
func (s *State) LastGrantID() uint64 { return s.lastGrantID }

// Miner returns what is kept of a miner.
func (s *State) Miner(name string) (Miner, bool) {
	if m := s.miner(name); m != nil {
		return *m, true
	}
	return Miner{}, false
}

// Miners returns all miners by name.
func (s *State) Miners() []Miner {
	miners := make([]Miner, len(s.miners))
	for i, m := range s.miners {
		miners[i] = *m
	}
	return miners
}

// Forgotten returns the sum of the miners that were forgotten.
func (s *State) Forgotten() Miner { return s.forgotten }

// Accepted returns the number of blocks with VerdictSuccess.
func (s *State) Accepted() uint64 { return uint64(len(s.accepted)) }

// LastAccepted returns the last block with VerdictSuccess.
func (s *State) LastAccepted() (Block, bool) {
	if len(s.accepted) == 0 {
		return Block{}, false
	}
	return s.blocks[s.accepted[len(s.accepted)-1]], true
}

// BlockCount returns the number of settled blocks.
func (s *State) BlockCount() uint64 { return uint64(len(s.blocks)) }

// Blocks returns the blocks with Sequence > after, at most limit of them; a limit below 1 means all.
func (s *State) Blocks(after uint64, limit int) []Block {
	if after >= uint64(len(s.blocks)) {
		return nil
	}
	rest := s.blocks[after:]
	if limit > 0 && limit < len(rest) {
		rest = rest[:limit]
	}
	return slices.Clone(rest)
}

// clone copies a job with its solution.
func (j *Job) clone() Job {
	copied := *j
	if j.Solution != nil {
		solution := *j.Solution
		copied.Solution = &solution
	}
	return copied
}

// server returns the row of a server, nil when there is none.
func (s *State) server(id uint64) *Server {
	if id == 0 || id > uint64(len(s.servers)) {
		return nil
	}
	return &s.servers[id-1]
}

// findMiner returns where a miner is, or where it would be.
func (s *State) findMiner(name string) (int, bool) {
	return sort.Find(len(s.miners), func(i int) int { return strings.Compare(name, s.miners[i].Name) })
}

// miner returns the row of a miner, nil when there is none.
func (s *State) miner(name string) *Miner { return s.byName[name] }

// minerRow returns the row of a miner, and makes it when there is none.
func (s *State) minerRow(name string) *Miner {
	row := s.byName[name]
	if row == nil {
		row = &Miner{Name: name}
		at, _ := s.findMiner(name)
		s.miners = slices.Insert(s.miners, at, row)
		s.byName[name] = row
	}
	return row
}

// settled returns the block of a job, nil when that job has none. Blocks are in the order of their jobs.
func (s *State) settled(jobID uint64) *Block {
	at, found := sort.Find(len(s.blocks), func(i int) int {
		switch id := s.blocks[i].JobID; {
		case jobID < id:
			return -1
		case jobID > id:
			return 1
		}
		return 0
	})
	if !found {
		return nil
	}
	return &s.blocks[at]
}
