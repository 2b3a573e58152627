package fsm

import (
	"reflect"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"raftmine/fsm/pow"
)

func plainEntries(t testing.TB) (entries [][]byte) {
	finish := Finish{JobID: 1, GrantID: 2, Miner: "a", Timestamp: 3, Nonces: pow.Range{First: 1, Last: 20}, Receipt: 7}
	grant := GrantWork{JobID: 1, Miner: "b", Instance: ID{9}, RequestID: 1 << 40, Chunks: 3}
	for _, commands := range [][]Command{{finish}, {grant}, {finish, grant, finish}, {Finish{Miner: "x"}}} {
		data, err := EncodeEntry(Entry{LeaderID: 1, UnixMilli: 2, Version: "0.1.0", Commands: commands})
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, data)
	}
	return entries
}

func TestCommonEntriesAreDecodedWithoutReflection(t *testing.T) {
	var d Decoder
	for _, data := range plainEntries(t) {
		if _, ok := d.plain(data); !ok {
			t.Errorf("%x goes the long way", data)
		}
	}
}

// FuzzDecoder: the short way never says anything else than DecodeEntry.
func FuzzDecoder(f *testing.F) {
	for _, data := range plainEntries(f) {
		f.Add(data)
		f.Add(append(data[:len(data):len(data)], 0x22, 0))
		f.Add(append(data[:len(data):len(data)], 0x08, 5)) // a field twice
		f.Add(data[:len(data)-1])
	}
	// A range twice: protobuf merges what the two say.
	var finish []byte
	finish = protowire.AppendTag(finish, 3, protowire.BytesType)
	finish = protowire.AppendString(finish, "a")
	for _, half := range [][]byte{{0x08, 1}, {0x10, 20}} {
		finish = protowire.AppendTag(finish, 5, protowire.BytesType)
		finish = protowire.AppendBytes(finish, half)
	}
	command := protowire.AppendBytes(protowire.AppendTag(nil, fieldFinish, protowire.BytesType), finish)
	entry := protowire.AppendBytes(protowire.AppendTag([]byte{EntryVersion}, fieldCommand, protowire.BytesType), command)
	if decoded, err := DecodeEntry(entry); err != nil || decoded.Commands[0].(Finish).Nonces != (pow.Range{First: 1, Last: 20}) {
		f.Fatalf("the range that is there twice is read as %+v: %v", decoded, err)
	}
	f.Add(entry)
	for _, command := range everyCommand() {
		f.Add(encode(f, command))
	}
	f.Add(encode(f, everyCommand()...))
	var d Decoder
	f.Fuzz(func(t *testing.T, data []byte) {
		short, ok := d.plain(data)
		if !ok {
			return
		}
		long, err := DecodeEntry(data)
		if err != nil || !reflect.DeepEqual(short, long) {
			t.Errorf("%x: %+v the short way, %+v (%v) the long way", data, short, long, err)
		}
	})
}
