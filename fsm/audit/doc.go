// Package audit replays a history and proves what it says. It opens no files and knows no network: records go in, a
// report comes out.
//
// # What Replay verifies
//
//   - The chain: each record is the one that was chained to the one before it. The first that is not is named by its
//     index, and nothing after it is looked at. A record that was removed is missed at the next one.
//   - The account: from commands and outcomes alone, with its own arithmetic, Replay keeps who owns each nonce. A grant of
//     what is granted or finished, an answer for what is not held, a chunk below a solution that nobody was ever granted:
//     each is found, and after every record the account must agree with the state that fsm.State.Apply came to.
//   - The proofs: every solution and every receipt is hashed with crypto/sha256. Receipts that say that the work was not
//     done are found by their statistics, see pow.Excess and pow.Receipts, and those that no search comes to are named. A miner
//     whose ranges were revoked afterwards is listed, but it is no fault of the history: a leader found it out, and what it
//     had finished of the job was searched again. Its suspicion starts anew then, and when it is implausible once more and
//     nothing is revoked, that is a fault.
//   - The beginning: the first command opens the cluster, so no record is missing before it, and it is the cluster that the
//     server is of, when that is known. A leader takes office before it logs anything else. One record of a term may come
//     before that, of a leader that lost its office and won again.
//   - One leader a term, jobs one after the other and each step in its order, at most one accepted block a height.
//   - The head: chain, Merkle tree and state digest, equal to the live ones at the same length, and to every head that was
//     known before.
//
// A history that was cut off at its end is a history too, and one that a majority of forgers chained anew holds in itself.
// Only a head that somebody else keeps shows these: another server's history, an export's last line, or a known tree.
//
// The memory of a replay does not grow with the number of records: it holds the state, the account of the current job, and
// a row for each name of a miner.
//
// # The tree
//
// Beside the chain stands a Merkle tree as RFC 6962 §2.1 defines it, in the form of golang.org/x/mod/sumdb/tlog: leaf n is
// the n-th record, counted from 0, and its bytes are what the chain hashes of it, without the hash before. So a record is
// proved to be in a history with a few hashes (ProveRecord), and an older head to be a beginning of a newer one (ProveOlder).
//
// What an audit or a proof says of a record names it by its log index: "record 18". Its place in the tree is its number,
// counted from 0, and always called that.
//
// The replicated state holds the head of the chain and not the tree's root: both follow from the same records, so one says
// as much as the other, and no server has to hash each record once more to have both. An audit computes the root and
// prints it with the chain and the state's digest, of a running server's history too; an export ends with all three. Who
// wants to compare a proof later keeps that line, RECORDS:TREE, or asks "raftmine audit --at INDEX" for that of any
// record.
//
// # The export, version 1
//
// An export is JSON lines, each ended by a newline and without spaces between tokens:
//
//	{"format":"raftmine history","version":1}
//	{"index":4,"term":2,"data":"...","chain":"...","entry":{...}}      one line a record
//	{"end":{"records":26,"index":33,"term":2,"chain":"...","tree":"...","state":"..."}}
//
//	data     the stored bytes, base64 with padding: a version byte and an Entry of raftmine.fsm.v1
//	chain    SHA256(chain of the record before || index || term || length of data || data); integers have 8 bytes, big
//	         endian; before the first record 64 zeros
//	entry    what data holds, with the outcome of each command, for people and scripts: see Readable
//	records  how many lines of records there were; index and term are the last one's, chain is its
//	tree     the root of the Merkle tree
//	state    the state digest of package fsm
//
// Hashes are 64 lower-case hex digits. entry follows from data and the records before it, and a reader that trusts nobody
// compares it: so do Replay and, without any of our code, testdata/audit/verify.py. Nothing in an export can be changed
// without being found, and both name the same record.
//
// # The block proof, version 1
//
// See BlockProof for what it shows. It is one JSON object: format "raftmine block proof", version, cluster_id, head
// (records, tree), block, and records, each with its role, its number in the tree, the position of the command in it, its
// index, term and data as in an export, and the path to the root.
//
// # The record proof, version 1
//
// See RecordProof for what it shows. It is one JSON object: format "raftmine record proof", version, head (records, tree),
// number of the record in the tree, its index, term and data as in an export, entry with what the data holds, as in an export
// but without the outcomes, and path, the hashes of RFC 6962 §2.1.1 in the order of package tlog.
//
// # The prefix proof, version 1
//
// See PrefixProof for what it shows. It is one JSON object: format "raftmine prefix proof", version, older and head (records,
// tree), and path, the hashes of RFC 6962 §2.1.2 in the order of package tlog.
//
// # Protocol and tuning
//
// The forms of exports and proofs, the leaves of the tree and the draw of a Sample are protocol: others compute them too.
// FalseAlarm is tuning.
package audit
