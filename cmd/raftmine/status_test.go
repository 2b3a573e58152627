package main

import (
	"slices"
	"strings"
	"testing"

	"raftmine/fsm/pow"
	"raftmine/rpc"
)

func TestStatusShowsWhoseHistoryIsIncomplete(t *testing.T) {
	statuses := []rpc.Status{
		{ServerID: 1, Servers: []rpc.ServerStatus{{ID: 1, Address: "a:1"}, {ID: 2, Address: "b:2"}, {ID: 3, Address: "c:3"}}},
		{ServerID: 2, HistoryMissing: 40},
		{}, // did not answer
	}
	view := viewStatus(statuses[0])
	view.addHistories(statuses)
	var text strings.Builder
	if err := printStatus(&text, statuses[0], view); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a:1", "whole", "b:2", "lacks 40 records", "c:3", "not asked"} {
		_, rest, found := strings.Cut(text.String(), want)
		if !found {
			t.Fatalf("no %q in this order:\n%s", want, text.String())
		}
		text.Reset()
		text.WriteString(rest)
	}
}

// TestStatusSaysThatServersDiverged: only answers at one index, of one cluster, can be compared.
func TestStatusSaysThatServersDiverged(t *testing.T) {
	answer := func(id, index uint64, digest byte, cluster string) rpc.Status {
		return rpc.Status{ServerID: id, AppliedIndex: index, StateDigest: pow.Hash{digest}, ClusterID: cluster}
	}
	for name, row := range map[string]struct {
		answers []rpc.Status
		want    []uint64
	}{
		"the same state": {[]rpc.Status{answer(1, 87, 1, "c"), answer(2, 87, 1, "c")}, nil},
		"one lags":       {[]rpc.Status{answer(1, 87, 1, "c"), answer(2, 86, 2, "c")}, nil},
		"no answer":      {[]rpc.Status{answer(1, 87, 1, "c"), {}}, nil},
		"two clusters":   {[]rpc.Status{answer(1, 87, 1, "c"), answer(2, 87, 2, "d")}, nil},
		"one diverged":   {[]rpc.Status{answer(3, 87, 3, "c"), answer(1, 87, 1, "c"), answer(2, 86, 2, "c")}, []uint64{1, 3}},
	} {
		view := viewStatus(row.answers[0])
		view.addHistories(row.answers)
		if !slices.Equal(view.Diverged, row.want) {
			t.Errorf("%s: %v, want %v", name, view.Diverged, row.want)
		}
		var text strings.Builder
		if err := printStatus(&text, row.answers[0], view); err != nil {
			t.Fatal(err)
		}
		if told := strings.Contains(text.String(), "SERVERS 1, 3 HAVE DIFFERENT STATES"); told != (row.want != nil) {
			t.Errorf("%s: printed %q", name, text.String())
		}
	}
}

// TestServerWithoutALeaderShowsNoEmptyCluster: before it has a leader it has applied nothing, and knows its voters all the same.
func TestServerWithoutALeaderShowsNoEmptyCluster(t *testing.T) {
	show := func(s rpc.Status) string {
		t.Helper()
		var text strings.Builder
		if err := printStatus(&text, s, viewStatus(s)); err != nil {
			t.Fatal(err)
		}
		return text.String()
	}
	started := rpc.Status{ServerID: 1, Term: 5, Voters: 3, Servers: []rpc.ServerStatus{
		{ID: 1, Address: "a:1", Voter: true}, {ID: 2, Address: "b:2", Voter: true}, {ID: 3, Address: "c:3", Voter: true}}}
	fenced := rpc.Status{ServerID: 1, Term: 5}
	lost := started
	lost.AppliedIndex, lost.Blocks = 7, 2
	for _, row := range []struct {
		status    rpc.Status
		want, not []string
	}{
		{started, []string{"no leader", "a majority of the 3 voters must be up", "up to entry 0", "b:2", "not applied yet"}, []string{"blocks", "no job", "removed"}},
		{fenced, []string{"no leader", "server 1 has no log yet", "start the other servers"}, []string{"blocks", "no job", "majority", "of 0 voters"}},
		{lost, []string{"no leader", "up to entry 7", "2 blocks accepted", "2 of 3 voters"}, nil},
	} {
		text := show(row.status)
		for _, want := range row.want {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		for _, not := range row.not {
			if strings.Contains(text, not) {
				t.Errorf("%q in\n%s", not, text)
			}
		}
	}
}

// TestServerSaysWhatItWaitsFor: one whose log is empty is no candidate for "server recover", which refuses it.
func TestServerSaysWhatItWaitsFor(t *testing.T) {
	for _, row := range []struct {
		voters []uint64
		alone  string
		want   string
	}{
		{[]uint64{1, 2}, "", "waiting until a majority of the servers 1 2 is up"},
		{[]uint64{1, 2}, "server 2 lives", `waiting until a majority of the servers 1 2 is up (this server does not go on alone: server 2 lives; to make it, stop it and see "raftmine server recover --help")`},
		{nil, "", "waiting for one that sends this server its log"},
		{nil, "start server 3", "waiting for one that sends this server its log (start server 3)"},
	} {
		if got := waitingFor(row.voters, row.alone); got != row.want {
			t.Errorf("%+v: %q", row, got)
		}
	}
}
