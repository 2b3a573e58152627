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
