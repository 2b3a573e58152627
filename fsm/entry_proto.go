package fsm

import (
	"errors"
	"fmt"

	"raftmine/fsm/fsmpb"
	"raftmine/fsm/pow"
)

// storeCommand returns the stored form of a command, nil when it is none of the command values.
func storeCommand(command Command) *fsmpb.Command {
	switch c := command.(type) {
	case OpenCluster:
		return &fsmpb.Command{Command: &fsmpb.Command_OpenCluster{OpenCluster: &fsmpb.OpenCluster{ClusterId: c.ClusterID}}}
	case AddServer:
		return &fsmpb.Command{Command: &fsmpb.Command_AddServer{AddServer: &fsmpb.AddServer{
			RequestId: c.RequestID[:], Address: c.Address, DataDir: c.DataDir, Host: storeHost(c.Host)}}}
	case UpdateServer:
		return &fsmpb.Command{Command: &fsmpb.Command_UpdateServer{UpdateServer: &fsmpb.UpdateServer{
			ServerId: c.ServerID, Address: c.Address, DataDir: c.DataDir, Host: storeHost(c.Host)}}}
	case ReadmitServer:
		return &fsmpb.Command{Command: &fsmpb.Command_ReadmitServer{
			ReadmitServer: &fsmpb.ReadmitServer{ServerId: c.ServerID}}}
	case RemoveServer:
		return &fsmpb.Command{Command: &fsmpb.Command_RemoveServer{
			RemoveServer: &fsmpb.RemoveServer{ServerId: c.ServerID, Reason: c.Reason}}}
	case ServerUp:
		return &fsmpb.Command{Command: &fsmpb.Command_ServerUp{ServerUp: &fsmpb.ServerUp{ServerId: c.ServerID}}}
	case ServerDown:
		return &fsmpb.Command{Command: &fsmpb.Command_ServerDown{
			ServerDown: &fsmpb.ServerDown{ServerId: c.ServerID, Reason: c.Reason}}}
	case TakeOffice:
		return &fsmpb.Command{Command: &fsmpb.Command_TakeOffice{TakeOffice: &fsmpb.TakeOffice{ServerId: c.ServerID}}}
	case OpenJob:
		return &fsmpb.Command{Command: &fsmpb.Command_OpenJob{OpenJob: &fsmpb.OpenJob{
			Height: c.Height, Previous: c.Previous[:], Bits: uint32(c.Bits), Timestamp: c.Timestamp,
			Nonces: storeRange(c.Nonces), ChunkSize: c.ChunkSize}}}
	case GrantWork:
		return &fsmpb.Command{Command: &fsmpb.Command_GrantWork{GrantWork: &fsmpb.GrantWork{
			JobId: c.JobID, Miner: c.Miner, Instance: c.Instance[:], RequestId: c.RequestID, Chunks: c.Chunks}}}
	case Finish:
		return &fsmpb.Command{Command: &fsmpb.Command_Finish{Finish: &fsmpb.Finish{
			JobId: c.JobID, GrantId: c.GrantID, Miner: c.Miner, Timestamp: c.Timestamp,
			Nonces: storeRange(c.Nonces), Receipt: c.Receipt}}}
	case Solve:
		return &fsmpb.Command{Command: &fsmpb.Command_Solve{Solve: &fsmpb.Solve{
			JobId: c.JobID, GrantId: c.GrantID, Miner: c.Miner, Timestamp: c.Timestamp, Nonce: c.Nonce}}}
	case Release:
		return &fsmpb.Command{Command: &fsmpb.Command_Release{Release: &fsmpb.Release{
			Miner: c.Miner, GrantIds: c.GrantIDs, Reason: fsmpb.ReleaseReason(c.Reason), Forget: c.Forget}}}
	case Strike:
		return &fsmpb.Command{Command: &fsmpb.Command_Strike{Strike: &fsmpb.Strike{Miner: c.Miner, Reason: c.Reason}}}
	case Roll:
		return &fsmpb.Command{Command: &fsmpb.Command_Roll{Roll: &fsmpb.Roll{
			JobId: c.JobID, Round: c.Round, Timestamp: c.Timestamp}}}
	case Submitting:
		return &fsmpb.Command{Command: &fsmpb.Command_Submitting{Submitting: &fsmpb.Submitting{JobId: c.JobID}}}
	case Submitted:
		return &fsmpb.Command{Command: &fsmpb.Command_Submitted{Submitted: &fsmpb.Submitted{
			JobId: c.JobID, Verdict: fsmpb.Verdict(c.Verdict), Detail: c.Detail}}}
	case CloseJob:
		return &fsmpb.Command{Command: &fsmpb.Command_CloseJob{CloseJob: &fsmpb.CloseJob{
			JobId: c.JobID, Reason: c.Reason}}}
	case Revoke:
		ranges := make([]*fsmpb.Range, len(c.Ranges))
		for i, nonces := range c.Ranges {
			ranges[i] = storeRange(nonces)
		}
		return &fsmpb.Command{Command: &fsmpb.Command_Revoke{Revoke: &fsmpb.Revoke{
			JobId: c.JobID, Round: c.Round, Miner: c.Miner, Ranges: ranges, Reason: c.Reason}}}
	case ClusterStop:
		return &fsmpb.Command{Command: &fsmpb.Command_ClusterStop{ClusterStop: &fsmpb.ClusterStop{Reason: c.Reason}}}
	case Recover:
		return &fsmpb.Command{Command: &fsmpb.Command_Recover{Recover: storeRecover(c)}}
	}
	return nil
}

// loadCommand reads the stored form of a command. Enum values are checked by checkKnown and checkShape.
func loadCommand(stored *fsmpb.Command) (Command, error) {
	var errs [2]error
	switch c := stored.GetCommand().(type) {
	case *fsmpb.Command_OpenCluster:
		return OpenCluster{ClusterID: c.OpenCluster.GetClusterId()}, nil
	case *fsmpb.Command_AddServer:
		m := c.AddServer
		command := AddServer{Address: m.GetAddress(), DataDir: m.GetDataDir(), Host: loadHost(m.GetHost())}
		errs[0] = loadBytes("request_id", command.RequestID[:], m.GetRequestId())
		return command, errs[0]
	case *fsmpb.Command_UpdateServer:
		m := c.UpdateServer
		return UpdateServer{ServerID: m.GetServerId(), Address: m.GetAddress(), DataDir: m.GetDataDir(),
			Host: loadHost(m.GetHost())}, nil
	case *fsmpb.Command_ReadmitServer:
		return ReadmitServer{ServerID: c.ReadmitServer.GetServerId()}, nil
	case *fsmpb.Command_RemoveServer:
		return RemoveServer{ServerID: c.RemoveServer.GetServerId(), Reason: c.RemoveServer.GetReason()}, nil
	case *fsmpb.Command_ServerUp:
		return ServerUp{ServerID: c.ServerUp.GetServerId()}, nil
	case *fsmpb.Command_ServerDown:
		return ServerDown{ServerID: c.ServerDown.GetServerId(), Reason: c.ServerDown.GetReason()}, nil
	case *fsmpb.Command_TakeOffice:
		return TakeOffice{ServerID: c.TakeOffice.GetServerId()}, nil
	case *fsmpb.Command_OpenJob:
		m := c.OpenJob
		command := OpenJob{Height: m.GetHeight(), Bits: int(m.GetBits()), Timestamp: m.GetTimestamp(),
			ChunkSize: m.GetChunkSize()}
		errs[0] = loadBytes("previous", command.Previous[:], m.GetPrevious())
		command.Nonces, errs[1] = loadRange(m.GetNonces())
		return command, errors.Join(errs[:]...)
	case *fsmpb.Command_GrantWork:
		m := c.GrantWork
		command := GrantWork{JobID: m.GetJobId(), Miner: m.GetMiner(), RequestID: m.GetRequestId(), Chunks: m.GetChunks()}
		errs[0] = loadBytes("instance", command.Instance[:], m.GetInstance())
		return command, errs[0]
	case *fsmpb.Command_Finish:
		m := c.Finish
		command := Finish{JobID: m.GetJobId(), GrantID: m.GetGrantId(), Miner: m.GetMiner(), Timestamp: m.GetTimestamp(),
			Receipt: m.GetReceipt()}
		command.Nonces, errs[0] = loadRange(m.GetNonces())
		return command, errs[0]
	case *fsmpb.Command_Solve:
		m := c.Solve
		return Solve{JobID: m.GetJobId(), GrantID: m.GetGrantId(), Miner: m.GetMiner(), Timestamp: m.GetTimestamp(),
			Nonce: m.GetNonce()}, nil
	case *fsmpb.Command_Release:
		m := c.Release
		return Release{Miner: m.GetMiner(), GrantIDs: m.GetGrantIds(), Reason: ReleaseReason(m.GetReason()),
			Forget: m.GetForget()}, nil
	case *fsmpb.Command_Strike:
		return Strike{Miner: c.Strike.GetMiner(), Reason: c.Strike.GetReason()}, nil
	case *fsmpb.Command_Roll:
		return Roll{JobID: c.Roll.GetJobId(), Round: c.Roll.GetRound(), Timestamp: c.Roll.GetTimestamp()}, nil
	case *fsmpb.Command_Submitting:
		return Submitting{JobID: c.Submitting.GetJobId()}, nil
	case *fsmpb.Command_Submitted:
		m := c.Submitted
		return Submitted{JobID: m.GetJobId(), Verdict: Verdict(m.GetVerdict()), Detail: m.GetDetail()}, nil
	case *fsmpb.Command_CloseJob:
		return CloseJob{JobID: c.CloseJob.GetJobId(), Reason: c.CloseJob.GetReason()}, nil
	case *fsmpb.Command_Revoke:
		m := c.Revoke
		command := Revoke{JobID: m.GetJobId(), Round: m.GetRound(), Miner: m.GetMiner(), Reason: m.GetReason()}
		for _, stored := range m.GetRanges() {
			nonces, err := loadRange(stored)
			if err != nil {
				return nil, err
			}
			command.Ranges = append(command.Ranges, nonces)
		}
		return command, nil
	case *fsmpb.Command_ClusterStop:
		return ClusterStop{Reason: c.ClusterStop.GetReason()}, nil
	case *fsmpb.Command_Recover:
		return loadRecover(c.Recover)
	}
	return nil, errors.New("no command is set")
}

func storeRange(nonces pow.Range) *fsmpb.Range {
	return &fsmpb.Range{First: nonces.First, Last: nonces.Last}
}

// loadRange wants the message to be there; whether the range makes sense is not its question.
func loadRange(stored *fsmpb.Range) (pow.Range, error) {
	if stored == nil {
		return pow.Range{}, errors.New("nonces are missing")
	}
	return pow.Range{First: stored.GetFirst(), Last: stored.GetLast()}, nil
}

func storeHost(host Host) *fsmpb.Host {
	return &fsmpb.Host{MachineId: host.MachineID, BootId: host.BootID}
}

func loadHost(stored *fsmpb.Host) Host {
	return Host{MachineID: stored.GetMachineId(), BootID: stored.GetBootId()}
}

func storeRecover(c Recover) *fsmpb.Recover {
	return &fsmpb.Recover{RecoveryId: c.RecoveryID[:], Survivor: c.Survivor, Index: c.Index, Term: c.Term, Head: c.Head[:]}
}

func loadRecover(m *fsmpb.Recover) (Recover, error) {
	command := Recover{Survivor: m.GetSurvivor(), Index: m.GetIndex(), Term: m.GetTerm()}
	return command, errors.Join(
		loadBytes("recovery_id", command.RecoveryID[:], m.GetRecoveryId()),
		loadBytes("head", command.Head[:], m.GetHead()))
}

// loadBytes fills a field of fixed length.
func loadBytes(field string, into, stored []byte) error {
	if len(stored) != len(into) {
		return fmt.Errorf("%s has %d bytes, want %d", field, len(stored), len(into))
	}
	copy(into, stored)
	return nil
}
