// Package registry is the local environment: a folder in which the raftmine processes of one user on one host find each
// other. A running server or web service publishes its address there; when it ends, cleanly or not, the address is gone.
//
//	DIR/lock        one flock: bootstrap, discovery and sweeping happen under it (Lock)
//	DIR/entries/    one JSON file for each running process (Publish)
//	DIR/data/       data directories of servers that were given none
//
// What holds:
//
//   - An entry file is exclusively flocked by the process that published it. The kernel frees the lock when that process
//     dies, however it dies, and keeps it while the process is only paused. So a file whose lock can be taken is dead, and
//     no pid, clock or timeout is ever trusted. Locks do not survive a boot.
//   - An entry file appears by rename, complete and locked. It is replaced by rename too (Update): the old file is
//     unlocked only after the new one stands in its place. Hence the rule for readers: a lock that could be taken proves
//     that the process is dead only if the name still leads to the locked file.
//   - A file's name is never used by a second process, so Sweep cannot remove what another process just wrote.
//   - Readers and Sweep take shared locks, which do not disturb each other, and publishers lock a file only before it has
//     its name; a temporary file that is swept away in that moment is written again.
//   - A dead entry stays as long as its sweeper wants it: it may be all that leads to a data directory elsewhere.
//   - Find, for who only looks, makes nothing.
//   - A damaged file changes nothing for the others: it is reported by name while its process lives, and swept after. One that
//     cannot be read is reported as long as it is there.
//
// The folder must be on a local file system. Its owner alone may write to it.
package registry
