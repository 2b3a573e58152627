package rpc

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"raftmine/miner"
	"raftmine/raftnode"
	"raftmine/raftnode/coordinator"
	pb "raftmine/rpc/raftminepb"
)

var (
	// ErrMalformed: a message makes no sense, whoever sent it; its sender must not repeat it.
	ErrMalformed = errors.New("malformed message")
	// ErrUnavailable: the server could not be reached, stops, or does not lead.
	ErrUnavailable = errors.New("unavailable")
	// ErrRefusedConnection: nothing listens at the address. It also matches syscall.ECONNREFUSED.
	ErrRefusedConnection = fmt.Errorf("nothing listens there: %w", syscall.ECONNREFUSED)
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("client is closed")
)

// errorDomain is the domain of the ErrorInfo detail that names a sentinel across the wire. Protocol.
const errorDomain = "raftmine"

// errorTable is the one table of sentinels and what they are on the wire; both directions read it. The code is for any
// gRPC client, the reason tells sentinels of one code apart. A row without a reason is known by its code alone, and is
// what a code means when no reason came. More than one row may name one code; reasons are unique. The first row that an
// error matches counts: coordinator's come first, because its errors may wrap raftnode's as their cause, and a mining
// stream that lost its leader must end with UNAVAILABLE for all that. Protocol.
var errorTable = []struct {
	sentinel error
	code     codes.Code
	reason   string
}{
	{coordinator.ErrNotLeader, codes.Unavailable, "LEADERSHIP_LOST"},
	{coordinator.ErrOutcomeUnknown, codes.Unavailable, "ANSWER_UNKNOWN"},
	{coordinator.ErrMinerRefused, codes.PermissionDenied, "MINER_REFUSED"},
	{coordinator.ErrNameTaken, codes.AlreadyExists, "NAME_TAKEN"},
	{coordinator.ErrTooSlow, codes.ResourceExhausted, "TOO_SLOW"},
	{coordinator.ErrTooManyMiners, codes.ResourceExhausted, "TOO_MANY_MINERS"},
	{coordinator.ErrSilent, codes.Unavailable, "MINER_SILENT"},
	{coordinator.ErrReplaced, codes.Aborted, "STREAM_REPLACED"},
	{coordinator.ErrDisconnected, codes.Canceled, "MINER_DISCONNECTED"},
	{raftnode.ErrNotLeader, codes.FailedPrecondition, "NOT_LEADER"}, // with a NotLeader detail, when the leader is known
	{raftnode.ErrOutcomeUnknown, codes.Aborted, "OUTCOME_UNKNOWN"},
	{raftnode.ErrClosed, codes.Unavailable, "SERVER_CLOSED"},
	{raftnode.ErrReplicaStopped, codes.Unavailable, "REPLICA_STOPPED"},
	{raftnode.ErrForeignCluster, codes.FailedPrecondition, "FOREIGN_CLUSTER"},
	{raftnode.ErrNotThere, codes.FailedPrecondition, "NOT_THERE"},
	{raftnode.ErrJoinRefused, codes.InvalidArgument, "JOIN_REFUSED"},
	{raftnode.ErrHistoryGap, codes.NotFound, "HISTORY_GAP"},
	{raftnode.ErrJournalDamaged, codes.DataLoss, "JOURNAL_DAMAGED"},
	{raftnode.ErrRefused, codes.FailedPrecondition, "REFUSED"},
	{ErrMalformed, codes.InvalidArgument, ""},
	{ErrUnavailable, codes.Unavailable, ""},
	{context.Canceled, codes.Canceled, ""},
	{context.DeadlineExceeded, codes.DeadlineExceeded, ""},
}

// toStatus makes the wire's error of err; nil stays nil.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, row := range errorTable {
		if !errors.Is(err, row.sentinel) {
			continue
		}
		plain := status.New(row.code, err.Error())
		var details []protoadapt.MessageV1
		if row.reason != "" {
			details = append(details, &errdetails.ErrorInfo{Reason: row.reason, Domain: errorDomain})
		}
		if other, ok := errors.AsType[*raftnode.NotLeaderError](err); ok {
			details = append(details, &pb.NotLeader{LeaderId: other.LeaderID, LeaderAddress: other.Address})
		}
		detailed, detailErr := plain.WithDetails(details...)
		if detailErr != nil {
			return plain.Err() // the code and the line still say it
		}
		return detailed.Err()
	}
	return status.Error(codes.Unknown, err.Error())
}

// remoteError is an error that another process returned. Its text is the other's own line; it matches the sentinel that
// the other meant.
type remoteError struct {
	status *status.Status
	cause  error
}

func (e *remoteError) Error() string {
	if e.status.Message() == "" {
		return e.status.Code().String()
	}
	return e.status.Message()
}
func (e *remoteError) Unwrap() error              { return e.cause }
func (e *remoteError) GRPCStatus() *status.Status { return e.status }

// fromStatus is the way back of toStatus; nil stays nil, and an error that did not come from gRPC stays as it is.
func fromStatus(err error) error {
	if err == nil {
		return nil
	}
	remote, ok := status.FromError(err)
	if !ok {
		return err
	}
	var reason string
	var hint *raftnode.NotLeaderError
	for _, detail := range remote.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == errorDomain {
				reason = d.GetReason()
			}
		case *pb.NotLeader:
			hint = &raftnode.NotLeaderError{LeaderID: d.GetLeaderId(), Address: d.GetLeaderAddress()}
		}
	}
	result := &remoteError{status: remote}
	for _, row := range errorTable {
		if row.code == remote.Code() && (row.reason == reason || row.reason == "") {
			result.cause = row.sentinel
			break
		}
	}
	if hint != nil && errors.Is(result.cause, raftnode.ErrNotLeader) {
		result.cause = hint
	}
	return result
}

// minerError is fromStatus for a miner: what will not change by dialling again matches miner.ErrRefused as well. That a
// taken name stays taken only time can tell: see nameClash.
func minerError(err error) error {
	if status.Code(err) == codes.PermissionDenied {
		return fmt.Errorf("%w: %w", miner.ErrRefused, fromStatus(err))
	}
	return fromStatus(err)
}

// malformed makes an ErrMalformed that says where.
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}
