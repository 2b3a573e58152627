package rpc

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"raftmine/miner"
	"raftmine/raftnode"
	"raftmine/raftnode/coordinator"
)

// TestErrorTableBothWays sends every sentinel, wrapped, as its code, and gets it back, and no other one.
func TestErrorTableBothWays(t *testing.T) {
	for _, row := range errorTable {
		sent := fmt.Errorf("grant range 1-100000: %w", row.sentinel)
		wire := toStatus(sent)
		if got := status.Convert(wire); got.Code() != row.code || got.Message() != sent.Error() {
			t.Errorf("%q is %v on the wire, want %v with the same line", sent, wire, row.code)
		}
		got := fromStatus(wire)
		if got.Error() != sent.Error() {
			t.Errorf("%q came back as %q", sent, got)
		}
		for _, other := range errorTable {
			want := errors.Is(row.sentinel, other.sentinel)
			if errors.Is(got, other.sentinel) != want {
				t.Errorf("%q came back; that it is %q: %t, want %t", sent, other.sentinel, !want, want)
			}
		}
		if again := toStatus(fmt.Errorf("through another server: %w", got)); status.Code(again) != row.code {
			t.Errorf("%q passed on is %v, want %v", sent, again, row.code)
		}
	}
}

func TestErrorTableHasNoTwins(t *testing.T) {
	reasons := make(map[string]bool)
	bare := make(map[codes.Code]bool)
	for _, row := range errorTable {
		if row.reason != "" && reasons[row.reason] {
			t.Errorf("reason %s names two sentinels", row.reason)
		}
		reasons[row.reason] = true
		if row.reason == "" && bare[row.code] {
			t.Errorf("code %v without a reason names two sentinels", row.code)
		}
		bare[row.code] = bare[row.code] || row.reason == ""
	}
}

func TestNotLeaderErrorCarriesTheLeader(t *testing.T) {
	sent := fmt.Errorf("join: %w", &raftnode.NotLeaderError{LeaderID: 2, Address: "127.0.0.1:7002"})
	got := fromStatus(toStatus(sent))
	hint, ok := errors.AsType[*raftnode.NotLeaderError](got)
	if !ok || hint.LeaderID != 2 || hint.Address != "127.0.0.1:7002" || !errors.Is(got, raftnode.ErrNotLeader) {
		t.Errorf("got %v (%+v), want the leader", got, hint)
	}
	if status.Code(toStatus(sent)) != codes.FailedPrecondition {
		t.Errorf("on the wire it is %v, want FAILED_PRECONDITION", toStatus(sent))
	}
}

// TestMiningErrorWithItsCauseInRaftIsTheCoordinators: else a miner that waits for another leader would be told something
// that mining.proto does not promise.
func TestMiningErrorWithItsCauseInRaftIsTheCoordinators(t *testing.T) {
	for _, test := range []struct{ outer, cause error }{
		{coordinator.ErrNotLeader, raftnode.ErrNotLeader},
		{coordinator.ErrNotLeader, &raftnode.NotLeaderError{LeaderID: 2, Address: "127.0.0.1:7002"}},
		{coordinator.ErrNotLeader, raftnode.ErrClosed},
		{coordinator.ErrOutcomeUnknown, raftnode.ErrOutcomeUnknown},
		{coordinator.ErrOutcomeUnknown, context.Canceled},
	} {
		for _, sent := range []error{
			fmt.Errorf("finish 1-100 of grant 1: %w: %w", test.outer, test.cause),
			errors.Join(test.cause, test.outer),
		} {
			wire := toStatus(sent)
			got := minerError(wire)
			if status.Code(wire) != codes.Unavailable || !errors.Is(got, test.outer) || errors.Is(got, test.cause) {
				t.Errorf("%q is %v on the wire and %q for the miner, want %q with UNAVAILABLE", sent, status.Code(wire), got, test.outer)
			}
		}
	}
}

func TestErrorsOfOtherGRPCProgramsAreUnderstood(t *testing.T) {
	for code, want := range map[codes.Code]error{
		codes.Unavailable: ErrUnavailable, codes.InvalidArgument: ErrMalformed,
		codes.Canceled: context.Canceled, codes.DeadlineExceeded: context.DeadlineExceeded,
	} {
		if got := fromStatus(status.Error(code, "words")); !errors.Is(got, want) || got.Error() != "words" {
			t.Errorf("%v is %v, want %v", code, got, want)
		}
	}
	for _, code := range []codes.Code{codes.Unknown, codes.Internal, codes.Unimplemented, codes.FailedPrecondition} {
		got := fromStatus(status.Error(code, ""))
		if errors.Unwrap(got) != nil || got.Error() == "" {
			t.Errorf("%v is %q, which is %v, want words and no sentinel", code, got, errors.Unwrap(got))
		}
	}
	if fromStatus(nil) != nil || toStatus(nil) != nil {
		t.Error("nil does not stay nil")
	}
	plain := errors.New("plain")
	if fromStatus(plain) != plain {
		t.Error("an error that is not gRPC's does not stay as it is")
	}
	if got := toStatus(plain); status.Code(got) != codes.Unknown || status.Convert(got).Message() != "plain" {
		t.Errorf("an error without a row is %v", got)
	}
}

func TestOnlyPermanentRefusalsEndAMiner(t *testing.T) {
	for _, row := range errorTable {
		want := row.sentinel == coordinator.ErrMinerRefused // a name is taken for good only after a while
		got := minerError(toStatus(row.sentinel))
		if errors.Is(got, miner.ErrRefused) != want || !errors.Is(got, row.sentinel) {
			t.Errorf("%q became %q; refused: %t, want %t", row.sentinel, got, !want, want)
		}
	}
}
