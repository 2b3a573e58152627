// Package miner is a miner: it holds a session with whichever server leads, searches the ranges it is granted, and
// answers for them.
//
// Its contract with the leader (the wire's meaning is in rpc/raftminepb, the messages are in contract.go):
//
//   - It asks for two ranges by default, so that it holds the next one before it finishes the current one.
//   - A range without a solution gets one AnswerNo, whose receipt is the nonce of its smallest digest; of equal digests
//     the lower nonce. A solution gets an AnswerYes at once, and the search of that range ends. Other ranges of the job
//     are searched on until the leader interrupts them: only the leader knows whether the solution counts.
//   - An answer is kept until it is acknowledged, and delivered again on every new stream right after the first
//     HeartbeatReply. What is kept is bounded by the ranges held.
//   - When the leader is gone it searches on in what it holds, and dials with growing pauses until there is a leader.
//   - An Interrupt ends searches within milliseconds: a kernel call lasts less than one, and it is checked between calls. It
//     does not drop answers that are not acknowledged yet.
//   - When it is asked to stop it ends its search, answers for the whole chunks at the head of each range, says that it
//     leaves, and waits a little for the acknowledgements.
//   - A message that makes no sense ends the stream with a clear line in the log. Nothing the leader sends makes it panic.
//
// One goroutine, Run's, owns the session and all that is held. It never blocks on the network: each stream has one
// goroutine that receives and one that sends. The search threads share the ranges under one lock, which they take once
// for each piece of some milliseconds; counters are atomic and each thread's own.
package miner
