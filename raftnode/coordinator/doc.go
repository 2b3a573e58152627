// Package coordinator is what a leader does in one term: it gets the block from the web service, opens the job, grants
// ranges to miners, takes and checks their answers, submits the solution, and goes on to the next block. It knows no Raft:
// it is given a Proposer, a BlockSource, and a context that ends with the leadership.
//
// # What is state and what is memory
//
// What must survive the leader is in fsm.State and is changed through the Proposer alone; which range a grant gets is
// decided there. Sessions, deadlines and speeds are the coordinator's memory, rebuilt by New from the state: every miner
// that holds ranges has a full lease to come back. Memory may be wrong about the state for a while, after a commit whose
// outcome is unknown; it is compared with the state each heartbeat. It decides only what is proposed, never what is true.
//
// # What is promised to a miner
//
// An Acknowledgement with Committed or Duplicate is sent only after the answer was committed; Duplicate also when the lease
// was lost and others have finished the whole range since, so that this very answer is not needed. Every answer gets exactly one
// acknowledgement on the stream it came on, unless that stream ends first. A range is sent only after its grant was
// committed. An Interrupt drops ranges, never answers: an answer that is on its way is still acknowledged.
// A wrong answer changes nothing but the miner's strikes; with fsm.MaxStrikes its stream ends with ErrMinerRefused.
//
// # Who is believed
//
// A receipt that no search comes to is a wrong answer: see impossible. What a single receipt cannot show, all of a miner's
// do (pow.Receipts): the answer with which the suspicion reaches liar is not taken, and the miner is refused at once. Refused
// either way, a miner loses what it holds, and what it finished of the round since its last good check is revoked and
// searched again by others, in one entry with its last strike. A miner that did half of the work is found after about 50
// ranges, one that did four fifths after about 550, and an honest one less than once in 1e8 ranges.
//
// The numbers are memory, of one process of a miner in one term: a new leader starts anew, believes what was finished
// before, and needs as many ranges again. A leader that ends between the finding and the commit of it leaves nothing half
// done. What a miner reports of itself, its hash rate above all, is shown and used only as far as its committed ranges bear
// it out.
//
// This finds a miner that does less than it says, not one that searches everything and hides a solution; and one that ends
// its answers where its luck suits it does better than it should, because any head of a grant may be answered for.
//
// # Whose strikes
//
// A name is proven by nothing, and costs nothing: who is refused may take another. So a refusal is no punishment. It holds
// by name, over terms, until the name was away for ForgetAfter, and then it is forgotten with the miner. Strikes that another
// process earned under the name of a miner that was away are taken from it when the process comes back that did good work
// under that name in this term. A process that was started since then has to wait.
//
// # Leases
//
// A miner that is silent for LeaseHeartbeats heartbeats, connected or not, loses its ranges, and so does one that answers
// heartbeats but finishes nothing for AnswerTimeout: that one is granted nothing for the length of a lease. What a
// connected miner was sent and its reports do not name is sent once more, and then returned. A stream that breaks may be
// resumed within the lease by the same process (its instance id): it keeps what it says it holds and is sent again what it
// does not. Another process of the same name gets the ranges released, and is refused while the first one is still
// connected.
//
// # One block
//
// The job loop asks the state what comes next, so it can be stopped anywhere and taken up by the next leader:
// no open job: ask the web service, OpenJob; open: look at the web service each heartbeat, close the job when it asks for
// another block or another number of bits, roll the timestamp when everything is finished; solved: Submitting,
// VerifyLeader, submit, Submitted. OpenJob and Roll travel in one entry with the grants of the waiting miners, Solve in one
// entry with Submitting, Finish with the next GrantWork, so that a new job costs few commits.
//
// Between the commit of a solution and its verdict the web service is asked for its block for two reasons only: to find
// out what came of a submission whose answer was lost, and to tell wrong from stale. That request's answer opens no job.
//
// # Goroutines and locks
//
// Run owns three goroutines: the job loop, the grant loop (which batches releases and grants of all waiting miners into
// one Propose at a time), and the sweep (heartbeats and leases). A session has none of its own; its caller brings one for
// Receive and one that drains Outgoing, and watches Done when that may get stuck. One mutex guards all memory.
// Proposer.View may be called under it; Propose, VerifyLeader and the block source never are.
package coordinator
