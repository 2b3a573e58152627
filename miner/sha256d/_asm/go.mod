module raftmine/miner/sha256d/asm

go 1.26.0
