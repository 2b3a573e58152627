// Package fsm is the replicated state of raftmine: servers, the current job and who searches which part of it, miners,
// and settled blocks. Every server applies the same log entries to it and arrives at the same state.
//
// # What Apply may see
//
// Apply is a function of the state and of one entry: its index, term and bytes. It sees no clock (an entry's UnixMilli
// is copied, never compared), no randomness, no map order, no files, no network and no Raft. Nothing but SHA-256 is
// computed, so every machine computes the same.
//
// # Three kinds of answers
//
// An error from Apply means that the entry cannot be decoded, or that its index or term went backwards: the state is as
// it was, and the replica must stop. Everything else is an Outcome for each command. Done changed the state as asked;
// every other code left it as it was, but for Head, which counts every applied entry. Commands are checked again when
// they are applied, whatever their proposer checked: a false one is Wrong, one that is not allowed now is Refused.
//
// # The partition
//
// Each chunk of a job is pending, granted to one miner, or finished. Pending is a cursor (chunks from there on) and a
// sorted list of runs below it that were returned; granted is the list of grants; finished is the rest. Runs are merged
// with their neighbours and with the cursor, so one partition has one representation, however it came about, and its
// size depends on the number of grants, never on the number of chunks. A grant is one contiguous run of whole chunks;
// what is left of it shrinks from its first end, chunk by chunk. Once a job is solved or closed its partition is kept as
// it was then, until the next job is opened: grants stay, even when their miner is forgotten.
//
// # Idempotency
//
// It comes from the state itself, so it costs no memory that grows: ids of grants and jobs, the request id of a server,
// and the last request id of a miner. A miner's request ids grow, so one that was answered never gets a second grant,
// until the miner is forgotten. Two commands count, and say Done each time: Submitting (attempts) and Strike. Revoke says
// Duplicate only while its chunks are pending: a proposer that does not know the outcome looks before it asks again.
//
// # Protocol and tuning
//
// Everything here is protocol: the rules, the limits, the encodings of entries, of snapshots and of the digest. A change
// of any of them parts a cluster from its history, unless it comes with a new format version that leaves the old ones as
// they are. There is no tuning: what may be tuned (speeds, deadlines, sizes of grants) is the coordinator's.
//
// A State is not safe for concurrent use: its owner holds a lock. A Snapshot shares nothing that changes.
package fsm
