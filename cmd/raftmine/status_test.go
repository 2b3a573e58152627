package main

import (
	"strings"
	"testing"

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
