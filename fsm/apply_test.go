package fsm

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"raftmine/fsm/pow"
)

// row is one (state, command, outcome).
type row struct {
	name    string
	state   func(testing.TB) *replica
	command Command
	want    Code
	detail  string // a part of the outcome's detail
}

// checkRows applies each command, and sees that Done changes the state, that everything else leaves it alone, and that
// what was done once is not done twice.
func checkRows(t *testing.T, rows []row) {
	t.Helper()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := row.state(t)
			before := r.content()
			outcome := r.do(row.command)
			if outcome.Code != row.want || !strings.Contains(outcome.Detail, row.detail) {
				t.Fatalf("%+v is %s (%s), want %s (%s)", row.command, outcome.Code, outcome.Detail, row.want, row.detail)
			}
			explained := outcome.Code != Done && outcome.Code != Duplicate
			if (outcome.Detail != "") != explained || strings.Contains(outcome.Detail, "\n") {
				t.Errorf("%s has the detail %q", outcome.Code, outcome.Detail)
			}
			checkWords(t, outcome)
			after := r.content()
			if (after != before) != (outcome.Code == Done) {
				t.Errorf("%s, and the state changed: %t", outcome.Code, after != before)
			}
			again := r.do(row.command)
			if _, counts := row.command.(Strike); counts {
				return
			}
			if _, counts := row.command.(Submitting); counts {
				return
			}
			if again.Code == Done || r.content() != after {
				t.Errorf("a second time it is %s", again.Code)
			}
		})
	}
}

func empty(t testing.TB) *replica { return newReplica(t) }

func addServer(n byte) AddServer {
	return AddServer{RequestID: ID{n}, Address: "127.0.0.1:7000", DataDir: "/data/1", Host: Host{"machine", "boot"}}
}

// withServers has the servers 1 (up), 2 (down) and 3 (removed).
func withServers(t testing.TB) *replica {
	r := newReplica(t)
	r.must(addServer(1), addServer(2), addServer(3), ServerUp{1}, RemoveServer{3, "gone"})
	return r
}

func TestServerCommands(t *testing.T) {
	moved := UpdateServer{ServerID: 1, Address: "127.0.0.1:7009", DataDir: "/data/1", Host: Host{"machine", "boot"}}
	unmoved := moved
	unmoved.Address = "127.0.0.1:7000"
	placeless := addServer(9)
	placeless.Address = ""
	dirless := addServer(9)
	dirless.DataDir = ""
	removedMoves := moved
	removedMoves.ServerID = 3
	unknownMoves := moved
	unknownMoves.ServerID = 4
	nowhere := moved
	nowhere.Address = ""
	checkRows(t, []row{
		{"the first server is added", empty, addServer(1), Done, ""},
		{"a new request adds a server", withServers, addServer(4), Done, ""},
		{"the same request adds none", withServers, addServer(2), Duplicate, ""},
		{"a removed server's request adds none", withServers, addServer(3), Duplicate, ""},
		{"a request without an id", withServers, addServer(0), Wrong, "request id"},
		{"a server without an address", withServers, placeless, Wrong, "address"},
		{"a server without a directory", withServers, dirless, Wrong, "data directory"},
		{"a server moves", withServers, moved, Done, ""},
		{"a server that did not move", withServers, unmoved, Duplicate, ""},
		{"a removed server moves", withServers, removedMoves, Done, ""},
		{"an unknown server moves", withServers, unknownMoves, Refused, "no server 4"},
		{"a server moves nowhere", withServers, nowhere, Wrong, "address"},
		{"a removed server returns", withServers, ReadmitServer{3}, Done, ""},
		{"a member returns", withServers, ReadmitServer{2}, Duplicate, ""},
		{"an unknown server returns", withServers, ReadmitServer{4}, Refused, "no server 4"},
		{"a member is removed", withServers, RemoveServer{1, ""}, Done, ""},
		{"a removed server is removed", withServers, RemoveServer{3, ""}, Duplicate, ""},
		{"an unknown server is removed", withServers, RemoveServer{math.MaxUint64, ""}, Refused, "no server"},
		{"a server comes up", withServers, ServerUp{2}, Done, ""},
		{"a server is up", withServers, ServerUp{1}, Duplicate, ""},
		{"a removed server comes up", withServers, ServerUp{3}, Refused, "no member"},
		{"an unknown server comes up", withServers, ServerUp{0}, Refused, "no server 0"},
		{"a server goes down", withServers, ServerDown{1, "silent"}, Done, ""},
		{"a server is down", withServers, ServerDown{2, ""}, Duplicate, ""},
		{"a removed server goes down", withServers, ServerDown{3, ""}, Duplicate, ""},
		{"an unknown server goes down", withServers, ServerDown{4, ""}, Refused, "no server 4"},
	})
}

func TestServerIDsAreGivenInOrderAndNeverReused(t *testing.T) {
	r := withServers(t)
	if id := r.must(addServer(4))[0].ServerID; id != 4 {
		t.Errorf("the fourth server has id %d", id)
	}
	if id := r.do(addServer(3)).ServerID; id != 3 {
		t.Errorf("the removed server has id %d now", id)
	}
	r.must(ReadmitServer{3}, ServerUp{3}, ServerUp{2})
	for _, step := range []struct {
		command Command
		lowest  uint64
	}{{ServerDown{1, ""}, 2}, {RemoveServer{2, ""}, 3}, {ServerUp{1}, 1}, {RemoveServer{1, ""}, 3}, {ServerDown{3, ""}, 0}} {
		r.must(step.command)
		if lowest := r.LowestUp(); lowest != step.lowest {
			t.Errorf("after %+v the lowest id that is up is %d, want %d", step.command, lowest, step.lowest)
		}
	}
	if row, _ := r.Server(2); row.Since != r.index-3 || row.Up || row.Member {
		t.Errorf("server 2 is %+v at entry %d", row, r.index)
	}
}

// inOffice has server 2 in office in term 5, in cluster "c".
func inOffice(t testing.TB) *replica {
	r := newReplica(t)
	r.term = 5
	r.must(OpenCluster{"c"}, TakeOffice{2})
	return r
}

func stopped(t testing.TB) *replica {
	r := inOffice(t)
	r.must(ClusterStop{"planned"})
	return r
}

func recovered(t testing.TB) *replica {
	r := inOffice(t)
	r.must(Recover{RecoveryID: ID{7}, Survivor: 3, Index: 1, Term: 5, Head: pow.Hash{9}})
	return r
}

func TestClusterCommands(t *testing.T) {
	nextTerm := func(t testing.TB) *replica {
		r := stopped(t)
		r.term = 6
		return r
	}
	checkRows(t, []row{
		{"a cluster is named", empty, OpenCluster{"c"}, Done, ""},
		{"a cluster without a name", empty, OpenCluster{}, Wrong, "empty"},
		{"the same name", inOffice, OpenCluster{"c"}, Duplicate, ""},
		{"another name", inOffice, OpenCluster{"d"}, Refused, "the cluster is c"},
		{"the first leader", empty, TakeOffice{1}, Done, ""},
		{"server 0 leads", empty, TakeOffice{}, Wrong, "server 0"},
		{"the same leader in the same term", inOffice, TakeOffice{2}, Duplicate, ""},
		{"another leader in the same term", inOffice, TakeOffice{1}, Refused, "server 2 is in office"},
		{"the same leader in a later term", nextTerm, TakeOffice{2}, Done, ""},
		{"the cluster stops", inOffice, ClusterStop{"planned"}, Done, ""},
		{"the cluster stops twice", stopped, ClusterStop{""}, Duplicate, ""},
		{"a recovery", inOffice, Recover{RecoveryID: ID{7}, Survivor: 3, Index: 1, Term: 5}, Done, ""},
		{"a recovery of what is to come", inOffice, Recover{RecoveryID: ID{7}, Survivor: 3, Index: 99}, Wrong, "not before"},
		{"a recovery again", recovered, Recover{RecoveryID: ID{7}, Survivor: 3}, Duplicate, ""},
		{"another recovery", recovered, Recover{RecoveryID: ID{8}, Survivor: 1}, Done, ""},
		{"a recovery of a later term", inOffice, Recover{RecoveryID: ID{7}, Survivor: 3, Term: 6}, Wrong, "not before"},
		{"a recovery without an id", inOffice, Recover{Survivor: 3}, Wrong, "id"},
		{"a recovery without a survivor", inOffice, Recover{RecoveryID: ID{7}}, Wrong, "survive"},
	})
}

func TestTakeOfficeEndsAClusterStop(t *testing.T) {
	r := stopped(t)
	if r.do(TakeOffice{2}); !r.Stopped() {
		t.Error("a duplicate ended it")
	}
	r.term = 6
	result := r.entry(TakeOffice{3})
	if want := (LeaderChanged{ServerID: 3, Term: 6}); r.Stopped() || !slices.Contains(result.Events, Event(want)) {
		t.Errorf("stopped: %t, events: %v", r.Stopped(), result.Events)
	}
	if want := (Office{ServerID: 3, Term: 6, Index: r.index}); r.Office() != want {
		t.Errorf("office is %+v, want %+v", r.Office(), want)
	}
}

func TestRecoveryIsKept(t *testing.T) {
	r := recovered(t).restored()
	want := Recover{RecoveryID: ID{7}, Survivor: 3, Index: 1, Term: 5, Head: pow.Hash{9}}
	if got, ok := r.Recovery(); !ok || got != want {
		t.Errorf("recovery is %+v, want %+v", got, want)
	}
	if _, ok := New().Recovery(); ok {
		t.Error("the empty state has one")
	}
}

func TestApplyStopsAtAnEntryThatDoesNotFollow(t *testing.T) {
	for _, next := range []struct{ index, term uint64 }{{0, 5}, {1, 5}, {2, 5}, {3, 4}, {3, 0}} {
		r := inOffice(t)
		r.must(ClusterStop{})
		before := r.Digest()
		data, err := EncodeEntry(Entry{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.State.Apply(next.index, next.term, data); !errors.Is(err, ErrOutOfOrder) {
			t.Errorf("entry %d of term %d: %v", next.index, next.term, err)
		}
		if r.Digest() != before {
			t.Errorf("entry %d of term %d changed the state", next.index, next.term)
		}
	}
	if _, err := New().Apply(1, 0, []byte{EntryVersion}); !errors.Is(err, ErrOutOfOrder) {
		t.Errorf("term 0: %v", err)
	}
}

func TestApplyStopsAtAnEntryThatCannotBeDecoded(t *testing.T) {
	r := withGrants(t, hardJob)
	before := r.Digest()
	_, err := r.State.Apply(2, 1, []byte{77, 1, 2, 3})
	says := fmt.Sprint(err)
	if !errors.Is(err, ErrBadEntry) || !strings.Contains(says, "entry 2") || !strings.Contains(says, "version 77") {
		t.Errorf("it says %s", says)
	}
	if r.Digest() != before {
		t.Error("the state changed")
	}
}

func TestTotalsDoNotWrap(t *testing.T) {
	total := uint64(math.MaxUint64 - 2)
	if addTo(&total, 5); total != math.MaxUint64 {
		t.Errorf("it is %d", total)
	}
	if takeFrom(&total, 5); total != math.MaxUint64-5 {
		t.Errorf("it is %d", total)
	}
	total = 3
	if takeFrom(&total, 5); total != 0 {
		t.Errorf("it is %d", total)
	}
	small := uint32(math.MaxUint32)
	if addTo32(&small, 1); small != math.MaxUint32 {
		t.Errorf("it is %d", small)
	}
}

func TestNamesAreWhatScriptsRead(t *testing.T) {
	got := []string{Done.String(), Refused.String(), ReleaseSilent.String(), VerdictSuccess.String(), VerdictWrong.String(),
		VerdictStale.String(), VerdictUnknown.String(), PhaseSubmitting.String(), JobRolled.String(), Code(0).String(),
		Verdict(9).String()}
	want := []string{"done", "refused", "silent", "success", "wrong", "stale", "unknown", "submitting", "rolled", "code(0)",
		"verdict(9)"}
	if !slices.Equal(got, want) {
		t.Errorf("names are %q, want %q", got, want)
	}
}
