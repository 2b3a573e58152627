package raftnode

import (
	"fmt"
	"log/slog"
	"slices"

	"github.com/google/uuid"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

// RecoverConfig is what an operator's recovery needs.
type RecoverConfig struct {
	DataDir     *DataDir              // of the server that goes on alone; open, and stays so
	Environment *registry.Environment // may be nil
	Host        fsm.Host              // zero: LocalHost
	Logger      *slog.Logger
}

// RecoveryPlan says what a recovery would do, for a person to decide.
type RecoveryPlan struct {
	ClusterID   string
	ServerID    uint64
	DataDir     string
	Index, Term uint64 // the last entry that the server would go on with
	LogOf       uint64 // whose log that is
	Voters      []uint64
	Read        []uint64    // voters whose logs were read; their servers do not run
	NotRead     []LostVoter // voters that nobody looked at
	Doubts      []string    // recoveries of others that may have been decided, and left logs behind that were read
}

// MayLose reports whether something acknowledged may be on the disks of the voters that were not read alone, and
// whether they could make up a leader among themselves. Both take a majority: of the voters, or, because they may have
// removed one or added one and nobody who was read knows of it, of one more or less. A survivor that went on alone is
// enough by itself.
func (p RecoveryPlan) MayLose() bool {
	return len(p.NotRead) > (len(p.Voters)-1)/2 || len(p.Doubts) > 0
}

// Recover makes a server that does not run the only voter of its group, when a person says so: voters whose directories
// cannot be found on this host are given up. One that runs is never passed over. Confirm is asked when everything is
// locked and read, and nothing is changed yet; when it returns false, nothing is.
func Recover(config RecoverConfig, confirm func(RecoveryPlan) bool) error {
	if config.Host == (fsm.Host{}) {
		config.Host = LocalHost()
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	dir := config.DataDir.Path()
	identity := config.DataDir.Identity()
	if identity.ServerID == 0 {
		return fmt.Errorf("data directory %s has no server yet: there is nothing to recover", dir)
	}
	if err := refuseCopy(config.DataDir, config.Host, config.Environment); err != nil {
		return err
	}
	record, err := readRecovery(dir)
	if err != nil {
		return err
	}
	if err := installRecovery(dir, record); err != nil {
		return err
	}
	r := &recovery{dir: config.DataDir, identity: identity, host: config.Host, env: config.Environment, operator: true,
		log: config.Logger.With("server_id", identity.ServerID)}
	r.facts.RecoveryID = uuid.New() // a stand-in until there is an intent
	defer r.release()
	if err := r.fencesOff(dir); err != nil {
		return fmt.Errorf("server %d: %w, and then this one, which joins again", identity.ServerID, err)
	}
	if err := r.gather(); err != nil {
		return err
	}
	plan := r.plan()
	if slices.Equal(plan.Voters, []uint64{identity.ServerID}) {
		return fmt.Errorf("server %d is the only voter already: start it", identity.ServerID)
	}
	if !confirm(plan) {
		return nil
	}
	// The fence goes first: of a server that is the only voter it would be the end.
	if err := liftFence(dir); err != nil {
		return err
	}
	if r.facts.RecoveryID, err = writeIntent(dir, true); err != nil {
		return err
	}
	if err := r.goOn(); err != nil {
		if discardErr := discardIntent(dir); discardErr != nil {
			return fmt.Errorf("%w; and %w", err, discardErr)
		}
		return err
	}
	return nil
}

func (r *recovery) plan() RecoveryPlan {
	plan := RecoveryPlan{
		ClusterID: r.identity.ClusterID,
		ServerID:  r.identity.ServerID,
		DataDir:   r.dir.Path(),
		Index:     r.best.last,
		Term:      r.best.lastTerm,
		LogOf:     r.best.id,
		Voters:    r.best.voters(),
		NotRead:   r.given,
	}
	for _, d := range r.doubts {
		if r.voters[d.survivor] == nil { // else its log was read: what it has alone is known
			plan.Doubts = append(plan.Doubts, d.why)
		}
	}
	for _, voter := range r.sorted() {
		plan.Read = append(plan.Read, voter.id)
	}
	return plan
}
