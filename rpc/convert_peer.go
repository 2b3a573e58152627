package rpc

import (
	"bytes"

	"raftmine/fsm"
	"raftmine/raftnode"
	pb "raftmine/rpc/raftminepb"
)

// heartbeatRequestFrom checks a HeartbeatRequest, whoever it is for.
func heartbeatRequestFrom(request *pb.HeartbeatRequest) (raftnode.HeartbeatRequest, error) {
	const name = "HeartbeatRequest"
	out := raftnode.HeartbeatRequest{
		ClusterID: request.GetClusterId(), ServerID: request.GetServerId(), Address: request.GetAddress(),
		Term: request.GetTerm(), LeaderID: request.GetLeaderId(), SentUnixMilli: request.GetSentUnixMs(),
		ServerAddresses: request.GetServerAddresses(),
	}
	if err := checkText(name, "cluster_id", out.ClusterID, fsm.MaxClusterID); err != nil {
		return raftnode.HeartbeatRequest{}, err
	}
	if err := checkPositive(name, "server_id", out.ServerID); err != nil {
		return raftnode.HeartbeatRequest{}, err
	}
	if err := checkAddress(name, "address", out.Address, false); err != nil {
		return raftnode.HeartbeatRequest{}, err
	}
	if err := checkAddresses(name, "server_addresses", out.ServerAddresses); err != nil {
		return raftnode.HeartbeatRequest{}, err
	}
	if out.SentUnixMilli > maxInt53 {
		return raftnode.HeartbeatRequest{}, fieldError(name, "sent_unix_ms", "is %d", out.SentUnixMilli)
	}
	return out, nil
}

func heartbeatRequestTo(request raftnode.HeartbeatRequest) *pb.HeartbeatRequest {
	return &pb.HeartbeatRequest{
		ClusterId: request.ClusterID, ServerId: request.ServerID, Address: request.Address, Term: request.Term,
		LeaderId: request.LeaderID, SentUnixMs: request.SentUnixMilli, ServerAddresses: request.ServerAddresses,
	}
}

func heartbeatReplyTo(report raftnode.ServerReport) *pb.HeartbeatReply {
	return &pb.HeartbeatReply{From: &pb.HeartbeatReply_Server{Server: &pb.ServerReport{
		ClusterId: report.ClusterID, ServerId: report.ServerID, Address: report.Address, Term: report.Term,
		LeaderId: report.LeaderID, ComputedLeaderId: report.ComputedLeaderID, LastIndex: report.LastIndex,
		AppliedIndex: report.AppliedIndex, DataDir: report.DataDir, MachineId: report.Host.MachineID,
		BootId: report.Host.BootID, Stopping: report.Stopping,
	}}}
}

func heartbeatReplyFrom(reply *pb.HeartbeatReply) (raftnode.ServerReport, error) {
	const name = "ServerReport"
	report := reply.GetServer()
	if report == nil {
		return raftnode.ServerReport{}, malformed("HeartbeatReply of a server must carry server")
	}
	if err := checkText(name, "cluster_id", report.GetClusterId(), fsm.MaxClusterID); err != nil {
		return raftnode.ServerReport{}, err
	}
	if err := checkPositive(name, "server_id", report.GetServerId()); err != nil {
		return raftnode.ServerReport{}, err
	}
	host, err := whereFrom(name, report.GetAddress(), report.GetDataDir(), report.GetMachineId(), report.GetBootId())
	if err != nil {
		return raftnode.ServerReport{}, err
	}
	return raftnode.ServerReport{
		ClusterID: report.GetClusterId(), ServerID: report.GetServerId(), Address: report.GetAddress(),
		Term: report.GetTerm(), LeaderID: report.GetLeaderId(), ComputedLeaderID: report.GetComputedLeaderId(),
		LastIndex: report.GetLastIndex(), AppliedIndex: report.GetAppliedIndex(), DataDir: report.GetDataDir(),
		Host: host, Stopping: report.GetStopping(),
	}, nil
}

// whereFrom checks what a server says of where it runs.
func whereFrom(message, address, dataDir, machineID, bootID string) (fsm.Host, error) {
	if err := checkAddress(message, "address", address, false); err != nil {
		return fsm.Host{}, err
	}
	if err := checkText(message, "data_dir", dataDir, fsm.MaxPath); err != nil {
		return fsm.Host{}, err
	}
	if err := checkText(message, "machine_id", machineID, fsm.MaxHostText); err != nil {
		return fsm.Host{}, err
	}
	return fsm.Host{MachineID: machineID, BootID: bootID}, checkText(message, "boot_id", bootID, fsm.MaxHostText)
}

func joinRequestTo(request raftnode.JoinRequest) *pb.JoinRequest {
	return &pb.JoinRequest{
		RequestId: request.RequestID[:], Address: request.Address, DataDir: request.DataDir,
		MachineId: request.Host.MachineID, BootId: request.Host.BootID, SoftwareVersion: request.SoftwareVersion,
	}
}

func joinRequestFrom(request *pb.JoinRequest) (raftnode.JoinRequest, error) {
	const name = "JoinRequest"
	id, err := idFrom(name, "request_id", request.GetRequestId())
	if err != nil {
		return raftnode.JoinRequest{}, err
	}
	if id == (fsm.ID{}) {
		return raftnode.JoinRequest{}, fieldError(name, "request_id", "is all zero")
	}
	host, err := whereFrom(name, request.GetAddress(), request.GetDataDir(), request.GetMachineId(), request.GetBootId())
	if err != nil {
		return raftnode.JoinRequest{}, err
	}
	return raftnode.JoinRequest{
		RequestID: id, Address: request.GetAddress(), DataDir: request.GetDataDir(), Host: host,
		SoftwareVersion: request.GetSoftwareVersion(),
	}, checkText(name, "software_version", request.GetSoftwareVersion(), fsm.MaxVersion)
}

func joinResponseTo(reply raftnode.JoinReply) *pb.JoinResponse {
	out := &pb.JoinResponse{ClusterId: reply.ClusterID, ServerId: reply.ServerID}
	for _, server := range reply.Servers {
		out.Servers = append(out.Servers, &pb.ServerAddress{ServerId: server.ServerID, Address: server.Address})
	}
	return out
}

func joinResponseFrom(response *pb.JoinResponse) (raftnode.JoinReply, error) {
	const name = "JoinResponse"
	out := raftnode.JoinReply{ClusterID: response.GetClusterId(), ServerID: response.GetServerId()}
	if err := checkText(name, "cluster_id", out.ClusterID, fsm.MaxClusterID); err != nil {
		return raftnode.JoinReply{}, err
	}
	if out.ClusterID == "" {
		return raftnode.JoinReply{}, fieldError(name, "cluster_id", "is empty")
	}
	if err := checkPositive(name, "server_id", out.ServerID); err != nil {
		return raftnode.JoinReply{}, err
	}
	if len(response.GetServers()) > maxAddresses {
		return raftnode.JoinReply{}, fieldError(name, "servers", "names %d servers, want at most %d",
			len(response.GetServers()), maxAddresses)
	}
	for _, server := range response.GetServers() {
		if err := checkPositive(name, "servers.server_id", server.GetServerId()); err != nil {
			return raftnode.JoinReply{}, err
		}
		if err := checkAddress(name, "servers.address", server.GetAddress(), false); err != nil {
			return raftnode.JoinReply{}, err
		}
		out.Servers = append(out.Servers, raftnode.ServerAddress{ServerID: server.GetServerId(), Address: server.GetAddress()})
	}
	return out, nil
}

// historyRecordBytes is about what a record takes in a message beside its data.
const historyRecordBytes = 64

func historyRequestTo(request raftnode.HistoryRequest) *pb.HistoryRequest {
	return &pb.HistoryRequest{
		ClusterId: request.ClusterID, AfterIndex: request.AfterIndex, LastIndex: request.LastIndex,
	}
}

func historyRequestFrom(request *pb.HistoryRequest) (raftnode.HistoryRequest, error) {
	const name = "HistoryRequest"
	out := raftnode.HistoryRequest{
		ClusterID: request.GetClusterId(), AfterIndex: request.GetAfterIndex(), LastIndex: request.GetLastIndex(),
	}
	if out.LastIndex != 0 && out.LastIndex <= out.AfterIndex {
		return raftnode.HistoryRequest{}, fieldError(name, "last_index", "is %d, want more than after_index, %d",
			out.LastIndex, out.AfterIndex)
	}
	return out, checkText(name, "cluster_id", out.ClusterID, fsm.MaxClusterID)
}

// historyRecordTo copies the data, which is the reader's.
func historyRecordTo(record raftnode.JournalRecord) *pb.HistoryRecord {
	return &pb.HistoryRecord{
		Index: record.Index, Term: record.Term, Data: bytes.Clone(record.Data), Chain: bytes.Clone(record.Chain[:]),
	}
}

// historyResponseFrom does not look at the order of records, which is the receiver's to check, with their chain.
func historyResponseFrom(response *pb.HistoryResponse) ([]raftnode.JournalRecord, error) {
	const name = "HistoryRecord"
	if len(response.GetRecords()) == 0 {
		return nil, malformed("HistoryResponse has no records")
	}
	records := make([]raftnode.JournalRecord, len(response.GetRecords()))
	for i, record := range response.GetRecords() {
		if err := checkPositive(name, "index", record.GetIndex()); err != nil {
			return nil, err
		}
		if err := checkPositive(name, "term", record.GetTerm()); err != nil {
			return nil, err
		}
		if len(record.GetData()) > fsm.MaxEntrySize {
			return nil, fieldError(name, "data", "has %d bytes, want at most %d", len(record.GetData()), fsm.MaxEntrySize)
		}
		chain, err := hashFrom(name, "chain", record.GetChain())
		if err != nil {
			return nil, err
		}
		records[i] = raftnode.JournalRecord{
			Index: record.GetIndex(), Term: record.GetTerm(), Data: record.GetData(), Chain: chain,
		}
	}
	return records, nil
}

func leaveRequestTo(request raftnode.LeaveRequest) *pb.LeaveRequest {
	return &pb.LeaveRequest{ClusterId: request.ClusterID, ServerId: request.ServerID}
}

func leaveRequestFrom(request *pb.LeaveRequest) (raftnode.LeaveRequest, error) {
	out := raftnode.LeaveRequest{ClusterID: request.GetClusterId(), ServerID: request.GetServerId()}
	if err := checkText("LeaveRequest", "cluster_id", out.ClusterID, fsm.MaxClusterID); err != nil {
		return raftnode.LeaveRequest{}, err
	}
	return out, checkPositive("LeaveRequest", "server_id", out.ServerID)
}
