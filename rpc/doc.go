// Package rpc is gRPC at the edge: it serves and calls raftmine.v1, converts between its messages and the types of the
// packages behind it, and translates their errors. Nothing is decided here, and generated types never leave it.
//
// A Server offers, on the listener it is given: MiningService (between Lead and Unlead alone), PeerService,
// ClusterService, the standard health service and server reflection. The health of the whole server ("") is SERVING
// while it runs; that of raftmine.v1.MiningService only while it leads, which is how an ordinary gRPC client with
// client-side health checks finds the leader. A health check does not move an open stream, so Unlead ends every mining
// stream with UNAVAILABLE.
//
// Bad input ends the call with one clear line and changes nothing: INVALID_ARGUMENT for a message that makes no sense,
// RESOURCE_EXHAUSTED for one above MaxMessageSize, INTERNAL for bytes that are no protobuf (gRPC answers those itself).
//
// What a connected miner costs the leader is a goal: at most 60 KiB with its health watch, of which BenchmarkConnectionMemory
// finds 55 here. Read and write buffers are small, a mining stream has one goroutine beside gRPC's own, and what needs a
// deep stack runs aside (see aside), so that waiting goroutines keep small ones.
//
// The clients: PeerClient for other servers, MinerDialer for miners, ClusterClient for people and scripts.
package rpc
