// Package webservice is both ends of the block web service: the Client a leader asks for blocks and hands solutions
// to, and the Server that `raftmine webservice` runs. The addresses and the words are those of the exercise's
// historical service:
//
//	GET      {base}/request.php                                    {"hash":"<64 hex>","zeros":8,"bits":29,"height":41}
//	GET|POST {base}/submit.php?timestamp=T&nonce=N&poolname=P      {"status":"success"|"wrong"|"incomplete"}
//	GET      {base}/blocks.json                                    the newest accepted blocks, newest first (Server only)
//
// hash is the previous block's; height is that of the block being searched for, 1 for the first. zeros counts leading
// zero hex digits, four bits each; bits, when present, is exact and wins. bits and height are optional. A proof's
// message and digest are defined by package pow; the digest of an accepted block is the next hash.
//
// # What the Client takes
//
// Every field as a JSON number or string, hex digits of either case, any content type, a byte order mark, gzip;
// verdicts as a JSON object, a JSON string or plain text, in any case, with space and quotes around them. "wrong" and
// "incomplete" are verdicts; anything else is an error, and the outcome of that submission is unknown. An HTTP error
// status counts only when no known verdict comes with it.
//
// A request has one deadline that covers connecting, redirects and the body, and an answer at most MaxAnswer bytes
// after decompression. Redirects are followed on the same scheme, host and port only. Environment proxies are not
// used: one may serve an old hash from its cache, or repeat a submission. For the same reason every request has a
// connection of its own: net/http sends a GET a second time when a kept connection breaks, and the second submission
// of an accepted block is "wrong".
//
// # What the Server promises
//
// "success" is answered after the block is synced to disk, and at most once per height. Every other proof is "wrong",
// also the one that was just accepted: that is what services of this kind answer, so nothing in raftmine may lean on a
// kinder one. Submission is at least once: whoever got no verdict asks for the hash first. The same hash as before:
// submit again. The own digest: it was accepted. A missing or malformed timestamp or nonce is "incomplete". Both are
// opaque decimal text of at most 20 digits and are hashed as they stand. A missing poolname is an empty one.
//
// zeros is rounded up from bits, so a client that knows zeros alone finds proofs that are accepted.
//
// With a block time the server moves bits by at most one a block; pace.go has the rule.
package webservice
