package raftnode

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
)

// TestUnreadVotersThatMayHaveGoneOnAreToldOf counts what the unread voters need: a majority of the voters that the read
// ones know of, or of a group that has one more or less by now.
func TestUnreadVotersThatMayHaveGoneOnAreToldOf(t *testing.T) {
	for _, row := range []struct {
		voters, unread int
		mayLose        bool
	}{{2, 0, false}, {2, 1, true}, {3, 1, false}, {3, 2, true}, {4, 1, false}, {4, 2, true}, {5, 2, false}, {5, 3, true}} {
		plan := RecoveryPlan{Voters: make([]uint64, row.voters), NotRead: make([]LostVoter, row.unread)}
		if got := plan.MayLose(); got != row.mayLose {
			t.Errorf("%d of %d voters unread: may lose %t", row.unread, row.voters, got)
		}
	}
}

func TestOperatorsRecoveryGivesUpWhatCannotBeFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 3)
		c.strike(20)
		for id := range uint64(3) {
			c.server(id + 1).kill()
		}
		if err := os.Rename(c.server(1).dir, c.server(1).dir+".moved"); err != nil {
			t.Fatal(err)
		}
		dir, err := OpenDataDir(c.server(3).dir)
		if err != nil {
			t.Fatal(err)
		}
		config := RecoverConfig{DataDir: dir, Host: fsm.Host{MachineID: "machine", BootID: "boot"}}

		// Nothing is done unless it is confirmed.
		before := snapshotOf(t, filepath.Dir(c.server(3).dir))
		var plan RecoveryPlan
		if err := Recover(config, func(p RecoveryPlan) bool { plan = p; return false }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(plan.Read, []uint64{2, 3}) || len(plan.NotRead) != 1 || plan.NotRead[0].ID != 1 || plan.MayLose() {
			t.Errorf("plan %+v", plan)
		}
		// After a boot the logs of this machine are still read; of what is on another one nothing is believed.
		for host, read := range map[fsm.Host][]uint64{{MachineID: "machine", BootID: "next boot"}: {2, 3}, {MachineID: "another", BootID: "boot"}: {3}} {
			elsewhere := config
			elsewhere.Host = host
			var plan RecoveryPlan
			if err := Recover(elsewhere, func(p RecoveryPlan) bool { plan = p; return false }); err != nil || !slices.Equal(plan.Read, read) {
				t.Errorf("on %+v: plan %+v, %v", host, plan, err)
			}
		}
		after := snapshotOf(t, filepath.Dir(c.server(3).dir))
		for path, content := range before {
			if filepath.Base(path) != lockFileName && after[path] != content {
				t.Errorf("%s was changed without a confirmation", path)
			}
		}
		if _, made := after[filepath.Join(c.server(3).dir, recoveryFileName)]; made {
			t.Error("a recovery was noted without a confirmation")
		}

		// A running server is never passed over.
		lock, err := lockDirectory(c.server(2).dir)
		if err != nil {
			t.Fatal(err)
		}
		err = Recover(config, func(RecoveryPlan) bool { return true })
		if err == nil || !strings.Contains(err.Error(), "in use by another raftmine server") {
			t.Errorf("beside a running server: %v", err)
		}
		if err := lock.Release(); err != nil {
			t.Fatal(err)
		}

		// Neither is one whose lock file was removed: it has its log open.
		open, err := openUnsynced(c.server(2).dir, false, discard())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(c.server(2).dir, lockFileName)); err != nil {
			t.Fatal(err)
		}
		err = Recover(config, func(RecoveryPlan) bool { return true })
		if err == nil || !strings.Contains(err.Error(), "in use by another process") {
			t.Errorf("beside a running server without a lock file: %v", err)
		}
		if err := open.Close(); err != nil {
			t.Fatal(err)
		}

		// One that was cut short is not gone on with by itself.
		func() {
			defer func() { _ = recover() }()
			defer func(old func(string)) { recoveryStep = old }(recoveryStep)
			recoveryStep = func(step string) {
				if step == "fenced 2" {
					panic(killed)
				}
			}
			t.Errorf("not cut short: %v", Recover(config, func(RecoveryPlan) bool { return true }))
		}()
		if err := dir.Close(); err != nil {
			t.Fatal(err)
		}
		c.reopen(3)
		if said := c.disks[2].logs.String(); !strings.Contains(said, "repeat it") {
			t.Errorf("said %q", said)
		}
		c.reopen(2) // its fence is void
		c.strike(5)
		c.server(2).kill()
		c.server(3).kill()

		if dir, err = OpenDataDir(c.server(3).dir); err != nil {
			t.Fatal(err)
		}
		config.DataDir = dir
		if err := Recover(config, func(RecoveryPlan) bool { return true }); err != nil {
			t.Fatal(err)
		}
		err = Recover(config, func(RecoveryPlan) bool { return true })
		if err == nil || !strings.Contains(err.Error(), "only voter already") {
			t.Errorf("once more: %v", err)
		}
		if err := dir.Close(); err != nil {
			t.Fatal(err)
		}
		c.reopen(3)
		c.strike(5)
		c.nothingLost(c.server(3).node)

		if dir, err = OpenDataDir(c.server(2).dir); err != nil {
			t.Fatal(err)
		}
		config.DataDir = dir
		err = Recover(config, func(RecoveryPlan) bool { return true })
		if err == nil || !strings.Contains(err.Error(), "left behind when server 3 went on alone") {
			t.Errorf("of a fenced server: %v", err)
		}
		if err := dir.Close(); err != nil {
			t.Fatal(err)
		}
		c.reopen(2)
		if err := os.Rename(c.server(1).dir+".moved", c.server(1).dir); err != nil {
			t.Fatal(err)
		}
		c.reopen(1) // unfenced, and too few to win
		c.whole(3)
		c.wait("all have the same state", c.same)
		c.nothingLost(c.leader())
	})
}

// TestRecoveryKnowsThatAnotherMayHaveBeenDecided: server 3 went on alone and its directory is lost. What it acknowledged is
// on no disk that can be read, and nobody may call that nothing.
func TestRecoveryKnowsThatAnotherMayHaveBeenDecided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 3)
		c.strike(20)
		for id := range uint64(3) {
			c.server(id + 1).kill()
		}
		rename := func(from, to string) {
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
		recoverOn := func(id uint64) (plan RecoveryPlan) {
			dir, err := OpenDataDir(c.server(id).dir)
			if err != nil {
				t.Fatal(err)
			}
			config := RecoverConfig{DataDir: dir, Host: fsm.Host{MachineID: "machine", BootID: "boot"}}
			if err := errors.Join(Recover(config, func(p RecoveryPlan) bool { plan = p; return id == 3 }), dir.Close()); err != nil {
				t.Fatal(err)
			}
			return plan
		}
		rename(c.server(1).dir, c.server(1).dir+".moved")
		recoverOn(3) // leaves server 2 behind
		c.reopen(3)
		c.strike(5)
		c.server(3).kill()
		rename(c.server(3).dir, c.server(3).dir+".lost")
		rename(c.server(1).dir+".moved", c.server(1).dir)

		plan := recoverOn(1)
		if !slices.Equal(plan.Read, []uint64{1, 2}) || !plan.MayLose() || len(plan.Doubts) != 1 || !strings.Contains(plan.Doubts[0], "server 3 may have gone on alone") {
			t.Errorf("plan %+v", plan)
		}
	})
}

// TestOperatorGoesOnWithoutALostSurvivor: server 3 went on alone, and its directory is lost. The fenced servers wait until a
// person gives up what server 3 alone had; what was acknowledged before is on their disks.
func TestOperatorGoesOnWithoutALostSurvivor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 3)
		c.strike(20)
		c.server(2).kill()
		c.server(1).kill()
		c.orphaned(3)
		c.reopen(3)
		before := maps.Clone(c.acked)
		c.strike(5)
		c.server(3).kill()
		if err := os.Rename(c.server(3).dir, c.server(3).dir+".lost"); err != nil {
			t.Fatal(err)
		}
		if err := c.open(1); err == nil || !strings.Contains(err.Error(), "raftmine server recover") {
			t.Errorf("without the survivor: %v", err)
		}
		fenced, err := readFence(c.server(1).dir, fenceFileName)
		if err != nil {
			t.Fatal(err)
		}
		recoverOn := func(id uint64, yes bool) (plan RecoveryPlan, err error) {
			dir, err := OpenDataDir(c.server(id).dir)
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			err = Recover(RecoverConfig{DataDir: dir, Host: fsm.Host{MachineID: "machine", BootID: "boot"}},
				func(p RecoveryPlan) bool { plan = p; return yes })
			return plan, err
		}
		plan, err := recoverOn(1, false)
		if err != nil || !slices.Equal(plan.Read, []uint64{1, 2}) || len(plan.NotRead) != 1 || !plan.MayLose() || len(plan.Doubts) != 2 {
			t.Errorf("plan %+v, %v", plan, err)
		}
		if still, err := readFence(c.server(1).dir, fenceFileName); still == nil || err != nil {
			t.Errorf("the fence after a no: %+v, %v", still, err)
		}
		// Cut short at its first step: server 2 is fenced as before, so nobody leads, and it may be repeated.
		func() {
			defer func() { _ = recover() }()
			defer func(old func(string)) { recoveryStep = old }(recoveryStep)
			recoveryStep = func(string) { panic(killed) }
			_, err := recoverOn(1, true)
			t.Errorf("not cut short: %v", err)
		}()
		c.reopen(1)
		if err := c.open(2); err == nil || !strings.Contains(err.Error(), "cannot tell") {
			t.Errorf("server 2: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if c.leader() != nil {
			t.Error("a server leads")
		}
		c.server(1).kill()
		if _, err := recoverOn(1, true); err != nil {
			t.Fatal(err)
		}
		c.reopen(1)
		c.acked = before
		c.strike(5)
		if term := c.leader().Status().Term; term <= fenced.NewTerm {
			t.Errorf("leads in term %d, and server 3 led in term %d", term, fenced.NewTerm)
		}
		c.reopen(2)
		c.whole(2)
		c.wait("both have the same state", c.same)
		c.nothingLost(c.leader())
	})
}

// TestSurvivorThatLostItsRecordCanBeRead: what server 3 acknowledged alone is in its log, so nothing is in doubt.
func TestSurvivorThatLostItsRecordCanBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 3)
		c.strike(20)
		c.server(2).kill()
		c.server(1).kill()
		c.orphaned(3)
		c.reopen(3)
		c.strike(5)
		c.server(3).kill()
		if err := errors.Join(os.Remove(filepath.Join(c.server(3).dir, recoveryFileName)), os.RemoveAll(filepath.Join(c.server(3).dir, journalFolder))); err != nil {
			t.Fatal(err)
		}
		dir, err := OpenDataDir(c.server(1).dir)
		if err != nil {
			t.Fatal(err)
		}
		var plan RecoveryPlan
		err = Recover(RecoverConfig{DataDir: dir, Host: fsm.Host{MachineID: "machine", BootID: "boot"}}, func(p RecoveryPlan) bool { plan = p; return true })
		if err := errors.Join(err, dir.Close()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(plan.Read, []uint64{1, 2, 3}) || plan.LogOf != 3 || plan.MayLose() {
			t.Errorf("plan %+v", plan)
		}
		c.reopen(1)
		c.strike(5)
		c.nothingLost(c.leader())
	})
}
