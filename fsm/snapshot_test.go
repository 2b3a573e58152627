package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"

	"raftmine/fsm/fsmpb"
	"raftmine/fsm/pow"
)

// full returns a replica in whose snapshot nothing is empty.
func full(t testing.TB) *replica {
	r := settledWith(VerdictSuccess)(t)
	r.must(OpenCluster{"cluster"}, addServer(1), addServer(2), ServerUp{1}, TakeOffice{1},
		Recover{RecoveryID: ID{1}, Survivor: 1, Index: 1, Term: 1, Head: pow.Hash{1}},
		changed(hardJob, func(j *OpenJob) { j.Height = 2 }))
	grant := func(miner string, request uint64) Command {
		return GrantWork{JobID: 2, Miner: miner, Instance: ID{9}, RequestID: request, Chunks: 2}
	}
	r.must(grant("b", 1), grant("c", 1), grant("b", 2), grant("d", 1),
		Release{"d", nil, ReleaseLeft, true}, Release{"b", []uint64{2}, ReleaseSilent, false},
		Strike{"c", "x"}, ClusterStop{"planned"})
	return r
}

func TestSnapshotRestoresTheState(t *testing.T) {
	solvedJob, _ := solved(t)
	for name, r := range map[string]*replica{
		"empty": newReplica(t), "solved": solvedJob, "open": hardGrants(t), "full": full(t), "closed": closed(t),
		"rolled": rolled(t),
	} {
		t.Run(name, func(t *testing.T) {
			restored := restore(t, r.State.Snapshot())
			if restored.Digest() != r.Digest() {
				t.Errorf("digest %s, want %s", restored.Digest(), r.Digest())
			}
			if !bytes.Equal(write(t, restored.Snapshot()), write(t, r.State.Snapshot())) {
				t.Error("its own snapshot is another one")
			}
			if fmt.Sprint(restored.Servers(), restored.Miners(), restored.Blocks(0, 0), restored.Counts(), restored.Head()) !=
				fmt.Sprint(r.Servers(), r.Miners(), r.Blocks(0, 0), r.Counts(), r.Head()) {
				t.Error("its view is another one")
			}
		})
	}
}

// The snapshot is written while entries are applied: nothing of it may change.
func TestSnapshotDoesNotChangeAfterIt(t *testing.T) {
	r := full(t)
	snapshot := r.State.Snapshot()
	if snapshot.Head() != r.Head() {
		t.Errorf("its head is %+v, want %+v", snapshot.Head(), r.Head())
	}
	before, digest := write(t, snapshot), r.Digest()
	r.must(ServerDown{1, ""}, ServerUp{2}, addServer(3), Strike{"c", "x"}, Release{"c", nil, ReleaseLeft, true},
		GrantWork{JobID: 2, Miner: "a", RequestID: 9, Chunks: 1}, Recover{RecoveryID: ID{2}, Survivor: 2, Term: 1},
		CloseJob{2, ""}, changed(easyJob, func(j *OpenJob) { j.Height, j.Timestamp = 2, 3000 }),
		GrantWork{JobID: 3, Miner: "a", RequestID: 10, Chunks: 10})
	job, _ := r.Job()
	nonce, _ := search(job.Work(), job.Nonces)
	r.must(Solve{JobID: 3, GrantID: 7, Miner: "a", Timestamp: 3000, Nonce: nonce},
		Submitting{3}, Submitted{3, VerdictWrong, ""})
	if !bytes.Equal(write(t, snapshot), before) || snapshot.Digest() != digest {
		t.Error("it changed")
	}
	solvedJob, _ := solved(t)
	snapshot = solvedJob.State.Snapshot()
	digest = snapshot.Digest()
	if solvedJob.must(Submitting{1}); snapshot.Digest() != digest {
		t.Error("its solution changed")
	}
}

// The race detector sees what the test above cannot.
func TestSnapshotIsWrittenWhileEntriesAreApplied(t *testing.T) {
	r := full(t)
	snapshot := r.State.Snapshot()
	want := r.Digest()
	read := make(chan *State)
	go func() {
		var file bytes.Buffer
		if _, err := snapshot.WriteTo(&file); err != nil {
			t.Error(err)
		}
		state, err := ReadSnapshot(&file)
		if err != nil {
			t.Error(err)
		}
		read <- state
	}()
	for i := range uint64(50) {
		r.must(Strike{"c", "x"}, UpdateServer{ServerID: 1, Address: fmt.Sprint("127.0.0.1:", i), DataDir: "/data/1"},
			GrantWork{JobID: 2, Miner: "e", RequestID: 2*i + 1, Chunks: 1}, Release{"e", nil, ReleaseLeft, false})
	}
	if state := <-read; state != nil && state.Digest() != want {
		t.Errorf("digest %s, want %s", state.Digest(), want)
	}
}

// What a view returns belongs to the caller.
func TestViewReturnsCopies(t *testing.T) {
	r, _ := solved(t)
	r.must(addServer(1), addServer(2), Submitting{1}, Submitted{1, VerdictSuccess, ""})
	digest := r.Digest()
	job, _ := r.Job()
	job.Solution.Nonce++
	r.Servers()[0].Up = true
	r.Miners()[0].Chunks++
	r.Blocks(0, 0)[0].Nonce++
	for grant := range r.Grants() {
		grant.Nonces.First++
	}
	if r.Digest() != digest || r.Check() != nil {
		t.Errorf("the state changed: %v", r.Check())
	}
}

// Whatever differs in two states must differ in their digests.
func TestDigestCoversEverything(t *testing.T) {
	changes := map[string]func(*State){
		"cluster id":     func(s *State) { s.clusterID += "x" },
		"stopped":        func(s *State) { s.stopped = !s.stopped },
		"office":         func(s *State) { s.office.ServerID++ },
		"office term":    func(s *State) { s.office.Term++ },
		"office index":   func(s *State) { s.office.Index++ },
		"records":        func(s *State) { s.head.Records++ },
		"head index":     func(s *State) { s.head.Index++ },
		"head term":      func(s *State) { s.head.Term++ },
		"head hash":      func(s *State) { s.head.Hash[31]++ },
		"no recovery":    func(s *State) { s.recovery = nil },
		"recovery id":    func(s *State) { s.recovery.RecoveryID[0]++ },
		"survivor":       func(s *State) { s.recovery.Survivor++ },
		"recovery index": func(s *State) { s.recovery.Index++ },
		"recovery term":  func(s *State) { s.recovery.Term++ },
		"recovery head":  func(s *State) { s.recovery.Head[0]++ },
		"a server less":  func(s *State) { s.servers = s.servers[:1] },
		"server id":      func(s *State) { s.servers[0].ID++ },
		"request id":     func(s *State) { s.servers[0].RequestID[0]++ },
		"address":        func(s *State) { s.servers[0].Address += "x" },
		"data directory": func(s *State) { s.servers[0].DataDir += "x" },
		"machine id":     func(s *State) { s.servers[0].Host.MachineID += "x" },
		"boot id":        func(s *State) { s.servers[0].Host.BootID += "x" },
		"member":         func(s *State) { s.servers[0].Member = false },
		"up":             func(s *State) { s.servers[0].Up = false },
		"since":          func(s *State) { s.servers[0].Since++ },
		"text moved":     func(s *State) { s.servers[0].Address += "/"; s.servers[0].DataDir = s.servers[0].DataDir[1:] },
		"no job":         func(s *State) { s.job = nil },
		"job id":         func(s *State) { s.job.ID++ },
		"height":         func(s *State) { s.job.Height++ },
		"previous":       func(s *State) { s.job.Previous[0]++ },
		"bits":           func(s *State) { s.job.Bits++ },
		"timestamp":      func(s *State) { s.job.Timestamp++ },
		"round":          func(s *State) { s.job.Round++ },
		"first nonce":    func(s *State) { s.job.Nonces.First++ },
		"last nonce":     func(s *State) { s.job.Nonces.Last++ },
		"chunk size":     func(s *State) { s.job.ChunkSize++ },
		"phase":          func(s *State) { s.job.Phase++ },
		"opened":         func(s *State) { s.job.Opened++ },
		"opened at":      func(s *State) { s.job.OpenedAt++ },
		"solution":       func(s *State) { s.job.Solution = &Solution{} },
		"cursor":         func(s *State) { s.work.cursor++ },
		"no returned":    func(s *State) { s.work.returned = nil },
		"returned first": func(s *State) { s.work.returned[0].first++ },
		"returned end":   func(s *State) { s.work.returned[0].end++ },
		"last grant id":  func(s *State) { s.lastGrantID++ },
		"a grant less":   func(s *State) { s.work.grants = s.work.grants[1:] },
		"grant id":       func(s *State) { s.work.grants[0].ID++ },
		"grant job":      func(s *State) { s.work.grants[0].JobID++ },
		"grant miner":    func(s *State) { s.work.grants[0].Miner += "x" },
		"instance":       func(s *State) { s.work.grants[0].Instance[0]++ },
		"grant first":    func(s *State) { s.work.grants[0].Nonces.First++ },
		"grant last":     func(s *State) { s.work.grants[0].Nonces.Last++ },
		"grant index":    func(s *State) { s.work.grants[0].Index++ },
		"a miner less":   func(s *State) { s.miners = s.miners[1:] },
		"miner name":     func(s *State) { s.miners[0].Name += "x" },
		"chunks":         func(s *State) { s.miners[0].Chunks++ },
		"nonces":         func(s *State) { s.miners[0].Nonces++ },
		"solutions":      func(s *State) { s.miners[0].Solutions++ },
		"strikes":        func(s *State) { s.miners[0].Strikes++ },
		"last request":   func(s *State) { s.miners[0].LastRequestID++ },
		"last grant":     func(s *State) { s.miners[0].LastGrantID++ },
		"forgotten":      func(s *State) { s.forgotten.Chunks++ },
		"a block less":   func(s *State) { s.blocks = nil },
		"block chain":    func(s *State) { s.blockChain[0]++ },
	}
	seen := map[pow.Hash]string{full(t).Digest(): "no change"}
	for name, change := range changes {
		state := full(t).State
		change(state)
		digest := state.Digest()
		if other, ok := seen[digest]; ok {
			t.Errorf("%s and %s give the same digest", name, other)
		}
		seen[digest] = name
	}
	solutions := []func(*Solution){
		func(s *Solution) {}, func(s *Solution) { s.GrantID++ }, func(s *Solution) { s.Miner += "x" },
		func(s *Solution) { s.Nonce++ }, func(s *Solution) { s.Hash[0]++ }, func(s *Solution) { s.Index++ },
		func(s *Solution) { s.Attempts++ },
	}
	for i, change := range solutions {
		r, _ := solved(t)
		change(r.job.Solution)
		if seen[r.Digest()] != "" {
			t.Errorf("change %d of the solution gives the digest of %s", i, seen[r.Digest()])
		}
		seen[r.Digest()] = fmt.Sprintf("change %d of the solution", i)
	}
	blocks := []func(*Block){
		func(b *Block) {}, func(b *Block) { b.Sequence++ }, func(b *Block) { b.JobID++ }, func(b *Block) { b.Height++ },
		func(b *Block) { b.Hash[0]++ }, func(b *Block) { b.Previous[0]++ }, func(b *Block) { b.Nonce++ },
		func(b *Block) { b.Timestamp++ }, func(b *Block) { b.Bits++ }, func(b *Block) { b.Miner += "x" },
		func(b *Block) { b.Verdict++ }, func(b *Block) { b.Detail += "x" }, func(b *Block) { b.Index++ },
		func(b *Block) { b.At++ },
	}
	chains := make(map[pow.Hash]int)
	for i, change := range blocks {
		block := full(t).blocks[0]
		change(&block)
		if other, ok := chains[chainBlock(pow.Hash{}, &block)]; ok {
			t.Errorf("changes %d and %d of a block give the same chain", i, other)
		}
		chains[chainBlock(pow.Hash{}, &block)] = i
	}
}

func TestCutOrChangedSnapshotIsRefused(t *testing.T) {
	r := full(t)
	file, want, same := write(t, r.State.Snapshot()), r.Digest(), 0
	for i := range file {
		if _, err := ReadSnapshot(bytes.NewReader(file[:i])); !errors.Is(err, ErrBadSnapshot) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
		damaged := slices.Clone(file)
		damaged[i] ^= 1 << (i % 8)
		// Protobuf reads any number but 0 as true, so a changed byte may mean the same. It never means something else.
		state, err := ReadSnapshot(bytes.NewReader(damaged))
		if err == nil && state.Digest() == want {
			same++
		} else if !errors.Is(err, ErrBadSnapshot) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	if same > 10 {
		t.Errorf("%d of %d bytes mean nothing", same, len(file))
	}
	if _, err := ReadSnapshot(bytes.NewReader(append(file, 0))); !errors.Is(err, ErrBadSnapshot) {
		t.Errorf("a byte more: %v", err)
	}
	file = file[:len(file)-1]
	file[8] = 2
	_, err := ReadSnapshot(bytes.NewReader(file))
	if !errors.Is(err, ErrBadSnapshot) || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("version 2: %v", err)
	}
}

// stored builds a snapshot file of parts, with the right digest of the state that they hold, if there is one.
func stored(t testing.TB, parts ...*fsmpb.SnapshotPart) []byte {
	file := []byte(snapshotMagic + "\x01")
	loader := loader{state: New()}
	for _, part := range parts {
		data, err := proto.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		file = append(binary.AppendUvarint(file, uint64(len(data))), data...)
		_ = loader.load(part) // it is for ReadSnapshot to complain
	}
	digest := loader.state.Digest()
	return append(append(file, 0), digest[:]...)
}

// A snapshot with a right digest is not trusted either.
func TestImpossibleStateIsNotRestored(t *testing.T) {
	for name, bad := range map[string]struct {
		change func([]*fsmpb.SnapshotPart) // header, servers, returned, grants, miners, blocks
		says   string
	}{
		"none":             {func(p []*fsmpb.SnapshotPart) {}, ""},
		"no cluster id":    {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().ClusterId = "" }, ""},
		"head":             {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Head.Hash = nil }, "head has 0 bytes"},
		"records":          {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Head.Records = 99 }, "history"},
		"office":           {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Office.Term = 99 }, "history"},
		"recovery":         {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Recovery.Index = 99 }, "history"},
		"recovery id":      {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Recovery.RecoveryId = nil }, "recovery_id"},
		"no job":           {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Job = nil }, "cursor without a job"},
		"bits":             {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Job.Bits = 257 }, "257 bits"},
		"chunk size":       {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Job.ChunkSize = 0 }, "chunks of 0"},
		"nonces":           {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Job.Nonces = nil }, "missing"},
		"nonce 0":          {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Job.Nonces.First = 0 }, "starts at 0"},
		"no phase":         {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Job.Phase = 0 }, "unknown phase"},
		"unknown phase":    {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Job.Phase = 260 }, "unknown value 260"},
		"solved":           {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Job.Phase = 2 }, "without a solution"},
		"accepted height":  {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Job.Height = 1 }, "height 1"},
		"opened":           {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Job.Opened = 99 }, "opened at entry 99"},
		"cursor too high":  {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Cursor = 11 }, "lies after 10"},
		"cursor too low":   {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Cursor = 5 }, "grant 4"},
		"last grant":       {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().LastGrantId = 3 }, "the last one is 3"},
		"forgotten name":   {func(p []*fsmpb.SnapshotPart) { p[0].GetHeader().Forgotten.Name = "x" }, "the forgotten"},
		"server id":        {func(p []*fsmpb.SnapshotPart) { p[1].GetServers().Rows[1].Id = 3 }, "stands in row 2"},
		"same request":     {func(p []*fsmpb.SnapshotPart) { p[1].GetServers().Rows[1].RequestId[0] = 1 }, "of server 1"},
		"short request":    {func(p []*fsmpb.SnapshotPart) { p[1].GetServers().Rows[1].RequestId = nil }, "request_id"},
		"up, no member":    {func(p []*fsmpb.SnapshotPart) { p[1].GetServers().Rows[0].Member = false }, "no member"},
		"since":            {func(p []*fsmpb.SnapshotPart) { p[1].GetServers().Rows[0].Since = 99 }, "entry 99"},
		"no address":       {func(p []*fsmpb.SnapshotPart) { p[1].GetServers().Rows[0].Address = "" }, "no address"},
		"long directory":   {func(p []*fsmpb.SnapshotPart) { p[1].GetServers().Rows[0].DataDir = long(MaxPath + 1) }, "4097"},
		"empty run":        {func(p []*fsmpb.SnapshotPart) { p[2].GetReturned().Rows[0].End = 0 }, "not below the cursor"},
		"run over cursor":  {func(p []*fsmpb.SnapshotPart) { p[2].GetReturned().Rows[0].End = 1 << 63 }, "not below the cursor"},
		"run at cursor":    {func(p []*fsmpb.SnapshotPart) { p[2].GetReturned().Rows[0].End = 6 }, "returned chunks"},
		"same run":         {func(p []*fsmpb.SnapshotPart) { twice(&p[2].GetReturned().Rows) }, "do not follow"},
		"run in a grant":   {func(p []*fsmpb.SnapshotPart) { p[2].GetReturned().Rows[0].End = 3 }, "also returned"},
		"same grant":       {func(p []*fsmpb.SnapshotPart) { twice(&p[3].GetGrants().Rows) }, "follows"},
		"grants meet":      {func(p []*fsmpb.SnapshotPart) { p[3].GetGrants().Rows[0].Nonces.Last = 500 }, "meets another"},
		"half a chunk":     {func(p []*fsmpb.SnapshotPart) { p[3].GetGrants().Rows[0].Nonces.First++ }, "whole chunks"},
		"grant's nonces":   {func(p []*fsmpb.SnapshotPart) { p[3].GetGrants().Rows[0].Nonces = nil }, "missing"},
		"grant's instance": {func(p []*fsmpb.SnapshotPart) { p[3].GetGrants().Rows[0].Instance = nil }, "instance"},
		"grant's miner":    {func(p []*fsmpb.SnapshotPart) { p[3].GetGrants().Rows[0].Miner = "zz" }, "zz is not known"},
		"grant's index":    {func(p []*fsmpb.SnapshotPart) { p[3].GetGrants().Rows[0].Index = 99 }, "entry 99"},
		"same miner":       {func(p []*fsmpb.SnapshotPart) { twice(&p[4].GetMiners().Rows) }, "follows"},
		"bad name":         {func(p []*fsmpb.SnapshotPart) { p[4].GetMiners().Rows[0].Name = "a b" }, "a b"},
		"request, no id":   {func(p []*fsmpb.SnapshotPart) { p[4].GetMiners().Rows[0].LastRequestId = 0 }, "request 0"},
		"grant to come":    {func(p []*fsmpb.SnapshotPart) { p[4].GetMiners().Rows[0].LastGrantId = 99 }, "grant 99"},
		"not its grant":    {func(p []*fsmpb.SnapshotPart) { p[4].GetMiners().Rows[0].LastGrantId = 3 }, "grant 3"},
		"bad proof":        {func(p []*fsmpb.SnapshotPart) { p[5].GetBlocks().Rows[0].Nonce++ }, "proof"},
		"bad hash":         {func(p []*fsmpb.SnapshotPart) { p[5].GetBlocks().Rows[0].Hash[31]++ }, "proof"},
		"block's bits":     {func(p []*fsmpb.SnapshotPart) { p[5].GetBlocks().Rows[0].Bits = 1 << 31 }, "bits"},
		"sequence":         {func(p []*fsmpb.SnapshotPart) { p[5].GetBlocks().Rows[0].Sequence = 2 }, "stands in row 1"},
		"job to come":      {func(p []*fsmpb.SnapshotPart) { p[5].GetBlocks().Rows[0].JobId = 3 }, "stands in row 1"},
		"job not closed":   {func(p []*fsmpb.SnapshotPart) { p[5].GetBlocks().Rows[0].JobId = 2 }, "does not fit"},
		"same height":      {func(p []*fsmpb.SnapshotPart) { twice(&p[5].GetBlocks().Rows) }, "stands in row 2"},
		"no verdict":       {func(p []*fsmpb.SnapshotPart) { p[5].GetBlocks().Rows[0].Verdict = 0 }, "verdict"},
		"long detail":      {func(p []*fsmpb.SnapshotPart) { p[5].GetBlocks().Rows[0].Detail = long(201) }, "201 bytes"},
		"no part":          {func(p []*fsmpb.SnapshotPart) { p[5].Reset() }, "bytes after its end"},
		"no header":        {func(p []*fsmpb.SnapshotPart) { p[0], p[1] = p[1], p[0] }, "header is not first"},
		"two headers":      {func(p []*fsmpb.SnapshotPart) { p[1] = p[0] }, "second header"},
	} {
		t.Run(name, func(t *testing.T) {
			var parts []*fsmpb.SnapshotPart
			for part := range full(t).State.Snapshot().parts() {
				parts = append(parts, proto.CloneOf(part))
			}
			if len(parts) != 6 {
				t.Fatalf("%d parts", len(parts))
			}
			bad.change(parts)
			_, err := ReadSnapshot(bytes.NewReader(stored(t, parts...)))
			if bad.says == "" {
				if err != nil {
					t.Errorf("a state that can be: %v", err)
				}
				return
			}
			if !errors.Is(err, ErrBadSnapshot) || !strings.Contains(fmt.Sprint(err), bad.says) {
				t.Errorf("it says %v, want %q", err, bad.says)
			}
		})
	}
	if _, err := ReadSnapshot(bytes.NewReader(stored(t))); !errors.Is(err, ErrBadSnapshot) {
		t.Errorf("without parts: %v", err)
	}
}

func twice[T any](rows *[]T) { *rows = append(*rows, (*rows)[len(*rows)-1]) }

func TestSnapshotPartOfGigabytesIsNotAllocated(t *testing.T) {
	for _, size := range []uint64{maxPart + 1, 1 << 21, 1 << 40, 1<<64 - 1} {
		file := binary.AppendUvarint([]byte(snapshotMagic+"\x01"), size)
		allocated := testing.AllocsPerRun(1, func() {
			if _, err := ReadSnapshot(bytes.NewReader(file)); !errors.Is(err, ErrBadSnapshot) {
				t.Errorf("%d bytes: %v", size, err)
			}
		})
		if allocated > 100 {
			t.Errorf("%d bytes: %v allocations", size, allocated)
		}
	}
}

func TestErrorsOfReaderAndWriterAreReturned(t *testing.T) {
	failed := errors.New("disk on fire")
	if _, err := ReadSnapshot(iotest.ErrReader(failed)); !errors.Is(err, failed) || errors.Is(err, ErrBadSnapshot) {
		t.Errorf("read: %v", err)
	}
	file := write(t, full(t).State.Snapshot())
	broken := io.MultiReader(bytes.NewReader(file[:100]), iotest.ErrReader(failed))
	if _, err := ReadSnapshot(broken); !errors.Is(err, failed) || errors.Is(err, ErrBadSnapshot) {
		t.Errorf("read in the middle: %v", err)
	}
	if _, err := ReadSnapshot(iotest.OneByteReader(bytes.NewReader(file))); err != nil {
		t.Errorf("byte by byte: %v", err)
	}
	reader, writer := io.Pipe()
	reader.CloseWithError(failed)
	if n, err := full(t).State.Snapshot().WriteTo(writer); n != 0 || !errors.Is(err, failed) {
		t.Errorf("write: %d bytes, %v", n, err)
	}
}
