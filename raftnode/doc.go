// Package raftnode is one server of the cluster: a Raft instance on a data directory, with what makes it a member of a
// group that knows who is up and who should lead.
//
// # Promises
//
// What Propose acknowledges is on the disks of a majority of the voters and applied here. Its errors keep apart what was
// never proposed (ErrNotLeader), and what may be committed yet (ErrOutcomeUnknown). Proposals are applied in the order of
// the entries that carry them, and many go into one entry while others are on their way (commit.go).
//
// A server gets its id, 1, 2, 3 and so on in the order of joining, before its Raft instance starts, and keeps it with its
// data directory, wherever it listens later (join.go, addresses.go). Of servers that start at the same instant in one
// environment one bootstraps and the others join it (start.go). A server with a directory of its own, elsewhere, that was killed
// before it published its first entry left no trace there, and neither does one that was stopped: a new cluster may be made
// beside it.
//
// The leader dials a server that asks for an id back, at the address that it claims, before anything is committed; one that
// asks answers there to its request id (join_door.go). The first server, whom nobody dials back, dials itself, and says when it is
// not there. Few members may be on their way at a time: who was given an id and is not reached takes a place until the grace
// period is over.
//
// The leader keeps the server table (membership.go). A server that answers becomes a non-voter, and a voter once it has
// caught up: one that died after it was given an id never weakens the majority. It is up when it votes, is caught up and
// answered for two heartbeats; down when its port refuses twice or when three heartbeats went unanswered. Every server
// computes the leader, the lowest id that is up, from that table. A Raft leader that is another hands over, at most
// once a second and less often when that does not help (leadership.go). Safety never rests on this: Raft elects.
//
// The history is kept beside Raft's log, which is compacted (journal.go): one record for each applied entry, chained by hash
// to the one before, as the state's own head is. What is applied again after a restart is compared with it; no record in it is
// ever overwritten. It is synced before a snapshot that takes the place of the log. Each record is noted in a file beside it, so
// that an end that was cut off is missed also when it was never synced; after a power failure it is written again from the log,
// and must be the same. A server that was restored from a snapshot fetches what it lacks from the others while it serves, and
// takes it only when its chain leads to the snapshot's head (journal_fill.go). What else differs, is damaged, or cannot be
// written stops the replica. ReadJournal reads a journal, also beside the server that writes it (journal_reader.go).
//
// An entry or snapshot that cannot be understood stops the replica: nothing is applied after it, no snapshot passes over
// it, Run returns why with index and version, and a restart meets it again (adapter.go).
//
// # Terms
//
// On gaining leadership a server waits for a barrier, so that its state has everything committed before, and commits
// TakeOffice as the term's first entry; the first entry of all begins with OpenCluster and also adds server 1. Until
// then nothing else is proposed. Raft's leader channel holds only the last change, so a quick loss and gain look like
// a gain: it ends the term before.
//
// # Raft's connections
//
// After the shared listener's tag, each Raft connection starts with a hello of 24 bytes (transport.go) that says which cluster and
// which server is meant. Raft checks neither, and ports are reused: without it the log of one cluster could reach a
// server of another, and the acknowledgements of one server could count as those of a second. In Raft's configuration a
// server's address is id@host:port, where it listened when it was added; dials use the newest address instead.
//
// A snapshot that is older than what is here is answered and not installed, and a server without a vote stands for no election:
// Raft checks neither (intake.go).
//
// What a Raft message announces is looked at before the library's decoder makes room for it (raftmessage.go): an entry is no larger
// than an entry of ours may be, a request has no more entries than a server sends at once. Snapshots are streams of any size.
// Raft reads few connections at a time, so that not many such messages are begun at once; of too many the idle ones go
// (transport.go).
//
// Leadership is never transferred by the library, whose transfer can wedge a leader for good (hashicorp/raft issue 696), but
// by holding the proposals until the target has our last entry, and sending it Raft's own TimeoutNow. A server that is
// the only voter sends it to itself, so it need not wait for its election timeout.
//
// # Going on alone
//
// When all other voters are dead, Raft alone cannot go on. On one host their death can be proved: a running server holds
// the flock of its data directory, also while it is paused. A server that has been without a leader for a second (a minute,
// if it never saw one) looks at these locks (recover_watch.go). When all are free Run returns ErrRecover, and the next Open
// recovers before Raft starts (recover.go): it locks every voter that any log names, takes the best log of all, gives it a
// configuration of this server alone in a term that nobody has seen, and puts a fence into every other directory. All
// that is undecided, and may be done again or discarded, until one replacement of recovery.json, made while all locks are
// held. Locks alone would not do: when the survivor dies too, the others must not come back on their old logs.
//
// Where the best log begins behind this server's history, the records in between are copied from the others' journals,
// before Raft starts (recover_journal.go). They are committed, so they may stay when the recovery is not decided. A journal
// also says what was committed for certain: without it no log is gone on with.
//
// A server that finds a fence asks the survivor's directory, which is on the same host, what became of it (fence.go).
// Decided: it archives its log and joins again, with an empty one, under its own id. It keeps its journal, which must be a
// beginning of the survivor's history; else it does not start, and nothing is moved. Not decided, and the survivor does
// not run: it ends the recovery and lifts the fence. It never guesses: where recovery.json is lost, the survivor's journal can
// say that the recovery was decided, and nothing says that it was not.
//
// An empty log under an old id is dangerous: such a server has forgotten its votes, and the first configurations of the
// history name it as a voter, server 1 even as the only one. So it starts with the recovery's term, and gives and asks for
// no votes until its log reaches beyond the recovery (votegate.go).
//
// Nobody goes on alone by itself across hosts, after a boot, over a network file system, with one log that cannot be read,
// or after StopCluster. Recover is the operator's way; it passes over voters that cannot be found, never over one that runs. It
// also goes on from a fenced log when the survivor cannot tell, for what was acknowledged before is there. The person gives up
// what the survivor alone had, so that fence is lifted before the intent is written: cut short then, it may be repeated.
//
// # Disk
//
// A data directory holds server.json and lock (datadir.go), raft.db with Raft's log and votes, snapshots, and the journal, whose
// bytes journal_format.go lays out. One from before there was a journal gets it: of the log, or from the others. After a
// recovery it also holds recovery.json at the survivor, rejoin.json at those it left behind, and the replaced logs in
// archive, which may be removed once all servers vote again. A server without an id never ran Raft, so a raft.db there is left
// from a start that was cut short, and is cleared.
//
// A server with an id does not start without raft.db, nor with one that is empty or older than what it did already
// (logcheck.go): it forgot entries that it acknowledged, or votes, and could elect a server that never had them. What is in
// the journal was applied, so it was in the log before, and synced there, also what a power failure took from the journal's
// end; a log or snapshot that ends before it, another term there, or a stored term that is lower shows an older copy. Nor does
// it start when a snapshot cannot be read and the log has not all that it held: Raft would pass over it. Never put
// a copy of a data directory back under a server that ran since; it joins as a new one. server.json says where the directory
// was at its last start, so that on one host a copy is known by the original (twin.go). It is sealed, and must agree with the
// server table of the log, and with the request id that raft.db has beside Raft's term and vote: the files of two servers are
// not exchanged unnoticed.
//
// # Limits
//
// Servers on different hosts that a majority of moved to other addresses at once find each other by the addresses given to
// join alone: after a restart only Raft's configuration is known, and it names the old ones.
//
// A leader needs an answer of a majority within its lease. With the default timeouts messages between servers may take 50 ms each
// way, measured, and with 150 ms nobody leads for long: far servers need longer Raft timeouts, all of them.
//
// Whoever gets no CPU for a lease, 250 ms, loses its term or calls an election; on a busy machine that is what all elections
// without a fault came from: the leader's threads were ready, and not run. This package does nothing about it but that a leader of
// two which stood still does not blame its follower (pair.go); the command asks for a place in front. A follower of two that
// alone stands still is taken for dead, and is a voter again when it answers.
//
// A log that was put back to an older state, and lacks nothing that the journal has, is not found out: it may lack entries and
// votes of the last moments before the server was ended, or any of them when the journal was put back, or taken away, as well.
//
// A journal that was cut, and whose files "synced" and "written" were made to fit, cannot be told from one that ended there; the
// other servers' journals can tell. The log cannot, to who only reads: a running server has it locked, and it does not say what
// of it was committed. Damage in a segment before the last one is found some time after the start.
//
// A server that archived its log behind a fence, and whose survivor is lost before it sent the server everything, has nothing left
// that a recovery could go on with but the log in its archive, which no command takes. A survivor that was moved is found
// by its fenced servers only while it runs in their environment.
//
// Servers do not compare their states while they run. That two of them differ at one index is seen by who asks both, as
// "raftmine status" does when they answer at the same index, and by an audit.
//
// Voters that an operator gave up, and that start again on their old directories, are found out when they meet the
// recovery's entry, but not when a snapshot of theirs reaches beyond it.
//
// Which leader a client should ask is in Status, and in *NotLeaderError.
package raftnode
