package raftnode

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"raftmine/raftnode/registry"
)

func sampleFence() fence {
	return fence{ServerID: 1, recoveryFacts: recoveryFacts{
		RecoveryID: uuid.UUID{1, 2, 3}, ClusterID: "cluster", Survivor: 2, SurvivorDir: "/data/server-2",
		Index: 120, Term: 3, HeadRecords: 99, HeadIndex: 119, HeadTerm: 3, HeadHash: strings.Repeat("ab", 32),
		NewTerm: 5, Left: []uint64{1, 3},
	}}
}

func parseFence(content []byte) (fence, error) {
	var f fence
	if err := decodeSealed(content, &f); err != nil {
		return fence{}, err
	}
	return f, f.check()
}

func TestFenceIsReadAsItWasWritten(t *testing.T) {
	dir := t.TempDir()
	want := sampleFence()
	if f, err := readFence(dir, fenceFileName); f != nil || err != nil {
		t.Fatalf("no fence: %+v, %v", f, err)
	}
	if err := writeSealed(filepath.Join(dir, fenceFileName), &want); err != nil {
		t.Fatal(err)
	}
	got, err := readFence(dir, fenceFileName)
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("read %+v, %v", got, err)
	}
}

func TestSenselessFenceIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(*fence){
		"no recovery id":           func(f *fence) { f.RecoveryID = uuid.Nil },
		"no cluster id":            func(f *fence) { f.ClusterID = "" },
		"no survivor":              func(f *fence) { f.Survivor = 0 },
		"relative directory":       func(f *fence) { f.SurvivorDir = "server-2" },
		"no directory":             func(f *fence) { f.SurvivorDir = "" },
		"no index":                 func(f *fence) { f.Index = 0 },
		"no term":                  func(f *fence) { f.Term = 0 },
		"new term not new":         func(f *fence) { f.NewTerm = f.Term },
		"history behind the log":   func(f *fence) { f.HeadIndex = f.Index + 1 },
		"history of a later term":  func(f *fence) { f.HeadTerm = f.Term + 1 },
		"short hash":               func(f *fence) { f.HeadHash = f.HeadHash[1:] },
		"hash that is none":        func(f *fence) { f.HeadHash = strings.Repeat("xy", 32) },
		"survivor left behind":     func(f *fence) { f.Left = append(f.Left, f.Survivor) },
		"server 0 left behind":     func(f *fence) { f.Left = []uint64{0} },
		"no server":                func(f *fence) { f.ServerID = 0 },
		"in the survivor's folder": func(f *fence) { f.ServerID = f.Survivor },
	} {
		f := sampleFence()
		spoil(&f)
		content, err := encodeSealed(&f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseFence(content); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestEveryDamagedByteOfAFenceIsFound flips a bit of each byte. White space alone may change.
func TestEveryDamagedByteOfAFenceIsFound(t *testing.T) {
	want := sampleFence()
	content, err := encodeSealed(&want)
	if err != nil {
		t.Fatal(err)
	}
	for at := range content {
		for bit := range 8 {
			damaged := bytes.Clone(content)
			damaged[at] ^= 1 << bit
			if got, err := parseFence(damaged); err == nil && !reflect.DeepEqual(got, want) {
				t.Fatalf("bit %d of byte %d (%q): read %+v", bit, at, content[at], got)
			}
		}
		if _, err := parseFence(content[:at]); err == nil && at < len(content)-1 {
			t.Fatalf("cut after %d of %d bytes: accepted", at, len(content))
		}
	}
	if _, err := parseFence(append(content, content...)); err == nil {
		t.Error("twice: accepted")
	}
}

func FuzzFence(f *testing.F) {
	sample := sampleFence()
	content, err := encodeSealed(&sample)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content)
	f.Add([]byte(`{"format":1,"sha256":"","body":{}}`))
	f.Add([]byte(`{"format":1,"body":null}`))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, content []byte) {
		got, err := parseFence(content)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			return
		}
		again, err := encodeSealed(&got)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseFence(again); err != nil || !reflect.DeepEqual(back, got) {
			t.Errorf("read %+v, and again %+v, %v", got, back, err)
		}
	})
}

func FuzzRecoveryRecord(f *testing.F) {
	record := recoveryRecord{Intent: &recoveryIntent{RecoveryID: uuid.UUID{9}}, Done: []doneRecovery{{recoveryFacts: sampleFence().recoveryFacts}}}
	content, err := json.Marshal(&record)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content)
	f.Add([]byte(`{"intent":{}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if !json.Valid(body) {
			return
		}
		content, err := encodeSealed(json.RawMessage(body)) // past the checksum, to what lies behind it
		if err != nil {
			return
		}
		var got recoveryRecord
		if decodeSealed(content, &got) != nil || got.check() != nil {
			return
		}
		if got.Intent != nil && got.Intent.RecoveryID == uuid.Nil || got.last() != nil && (got.last().Survivor == 0 || !got.has(got.last().RecoveryID)) {
			t.Errorf("accepted %s", body)
		}
	})
}

// TestDamagedFenceStopsTheServer: what it said is not known, so Raft must not start, and a person must look.
func TestDamagedFenceStopsTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(5)
		c.server(1).kill()
		c.orphaned(2)
		c.reopen(2)
		fencePath := filepath.Join(c.server(1).dir, fenceFileName)
		good, err := os.ReadFile(fencePath)
		if err != nil {
			t.Fatal(err)
		}
		before := snapshotOf(t, c.server(1).dir)
		for name, content := range map[string][]byte{
			"empty":         {},
			"cut":           good[:len(good)/2],
			"another index": bytes.Replace(good, []byte(`"index": `), []byte(`"index": 1`), 1),
			"rubbish":       bytes.Repeat([]byte{0xff}, 4096),
		} {
			if err := os.WriteFile(fencePath, content, 0o600); err != nil {
				t.Fatal(err)
			}
			err := c.open(1)
			if !errors.Is(err, ErrDamagedDataDir) || !strings.Contains(err.Error(), fencePath) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := os.WriteFile(fencePath, good, 0o600); err != nil {
			t.Fatal(err)
		}
		if after := snapshotOf(t, c.server(1).dir); !reflect.DeepEqual(before, after) {
			t.Errorf("files were %v and are %v", before, after)
		}
		c.reopen(1)
		c.whole(2)
	})
}

// TestFenceWhoseSurvivorCannotTellStopsTheServer: its log may be of no worth, and nobody knows.
func TestFenceWhoseSurvivorCannotTellStopsTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(5)
		c.server(1).kill()
		c.orphaned(2)
		c.reopen(2)
		c.server(2).kill()
		moved := c.server(2).dir + ".moved"
		if err := os.Rename(c.server(2).dir, moved); err != nil {
			t.Fatal(err)
		}
		if err := c.open(1); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "start server 2 first") {
			t.Errorf("without the survivor's directory: %v", err)
		}
		record := filepath.Join(moved, recoveryFileName)
		good, err := os.ReadFile(record)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Rename(moved, c.server(2).dir), os.WriteFile(filepath.Join(c.server(2).dir, recoveryFileName), good[:99], 0o600)); err != nil {
			t.Fatal(err)
		}
		journal := filepath.Join(c.server(2).dir, journalFolder)
		if err := os.Rename(journal, journal+".away"); err != nil {
			t.Fatal(err)
		}
		if err := c.open(1); !errors.Is(err, ErrDamagedDataDir) || !strings.Contains(err.Error(), recoveryFileName) {
			t.Errorf("with a damaged record: %v", err)
		}
		if err := os.Rename(journal+".away", journal); err != nil {
			t.Fatal(err)
		}
		if err := c.open(2); !errors.Is(err, ErrDamagedDataDir) || !strings.Contains(err.Error(), recoveryFileName) {
			t.Errorf("the survivor, with a damaged record: %v", err)
		}
		if err := os.WriteFile(filepath.Join(c.server(2).dir, recoveryFileName), good, 0o600); err != nil {
			t.Fatal(err)
		}
		c.reopen(1)
		c.wait("the reason", func() bool { return strings.Contains(c.server(1).node.Alone(), "start server 2") })
		c.reopen(2)
		c.whole(2)
		c.nothingLost(c.leader())
	})
}

// TestFenceHoldsThoughTheSurvivorsRecordIsLost: no file is no word that there was no recovery. What the survivor acknowledged
// alone is in its journal, which tells as well; without that the server waits for a person.
func TestFenceHoldsThoughTheSurvivorsRecordIsLost(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(dir string) error
		tells bool
	}{
		{"no record", func(dir string) error { return os.Remove(filepath.Join(dir, recoveryFileName)) }, true},
		{"an empty record", func(dir string) error { return os.Truncate(filepath.Join(dir, recoveryFileName), 0) }, true},
		{"a record of later", func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, recoveryFileName)), writeRecovery(dir, recoveryRecord{}))
		}, true},
		{"no record and no journal", func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, recoveryFileName)), os.RemoveAll(filepath.Join(dir, journalFolder)))
		}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newDiskCluster(t, 3)
				c.strike(5)
				c.server(2).kill()
				c.server(1).kill()
				c.orphaned(3)
				c.reopen(3)
				c.strike(20)
				c.server(3).kill()
				if err := row.spoil(c.server(3).dir); err != nil {
					t.Fatal(err)
				}
				for _, id := range []uint64{1, 2} {
					err := c.open(id)
					if row.tells && err != nil || !row.tells && (err == nil || !strings.Contains(err.Error(), "cannot tell")) {
						t.Errorf("server %d: %v", id, err)
					}
				}
				time.Sleep(30 * time.Second)
				if leader := c.leader(); leader != nil {
					t.Fatalf("server %d leads without what server 3 acknowledged", leader.ID())
				}
				if !row.tells {
					return
				}
				if row.name == "an empty record" {
					if err := c.open(3); !errors.Is(err, ErrDamagedDataDir) || !strings.Contains(err.Error(), "move this file away") {
						t.Errorf("server 3: %v", err)
					}
				}
				if err := os.RemoveAll(filepath.Join(c.server(3).dir, recoveryFileName)); err != nil { // as it was told
					t.Fatal(err)
				}
				c.reopen(3)
				c.whole(3)
				c.wait("all have the same state", c.same)
				c.nothingLost(c.leader())
			})
		})
	}
}

// TestFencedServerFindsASurvivorThatWasMoved: the fence names where it was, and the environment where it is.
func TestFencedServerFindsASurvivorThatWasMoved(t *testing.T) {
	env, err := registry.Open(filepath.Join(t.TempDir(), "environment"))
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2, func(config *Config) { config.Environment = env })
		c.strike(5)
		c.server(1).kill()
		c.orphaned(2)
		c.reopen(2)
		c.strike(5)
		c.server(2).kill()
		moved := c.server(2).dir + ".moved"
		if err := os.Rename(c.server(2).dir, moved); err != nil {
			t.Fatal(err)
		}
		c.server(2).dir = moved
		if err := c.open(1); err == nil || !strings.Contains(err.Error(), "start server 2 first") {
			t.Fatalf("before server 2 runs: %v", err)
		}
		c.reopen(2)
		c.reopen(1)
		c.whole(2)
		c.wait("both have the same state", c.same)
		c.nothingLost(c.leader())
	})
}

// TestFenceThatDoesNotFitTheLogStopsTheServer: the log here has what the survivor never had.
func TestFenceThatDoesNotFitTheLogStopsTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(5)
		c.server(1).kill()
		c.orphaned(2)
		c.reopen(2)
		f, err := readFence(c.server(1).dir, fenceFileName)
		if err != nil {
			t.Fatal(err)
		}
		short, other := *f, *f
		short.Index, short.HeadIndex, short.HeadTerm = 2, 1, 1
		other.HeadHash = strings.Repeat("00", 32)
		for name, wrong := range map[string]fence{"ends too early": short, "another chain": other} {
			if err := writeSealed(filepath.Join(c.server(1).dir, fenceFileName), &wrong); err != nil {
				t.Fatal(err)
			}
			if err := c.open(1); err == nil || !strings.Contains(err.Error(), "is no beginning of what server 2 went on with") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := os.Stat(filepath.Join(c.server(1).dir, logFile)); err != nil {
			t.Errorf("the log was moved: %v", err)
		}
	})
}
