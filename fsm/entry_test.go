package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"raftmine/fsm/fsmpb"
	"raftmine/fsm/pow"
)

// everyCommand has each command with all its fields set.
func everyCommand() []Command {
	host := Host{MachineID: "machine", BootID: "boot"}
	return []Command{
		OpenCluster{ClusterID: "cluster"},
		AddServer{RequestID: ID{1, 2}, Address: "127.0.0.1:1", DataDir: "/data", Host: host},
		UpdateServer{ServerID: 1, Address: "127.0.0.1:2", DataDir: "/other", Host: host},
		ReadmitServer{ServerID: 1},
		RemoveServer{ServerID: 1, Reason: "gone"},
		ServerUp{ServerID: 1},
		ServerDown{ServerID: 1, Reason: "silent"},
		TakeOffice{ServerID: 1},
		OpenJob{Height: 1, Previous: pow.Hash{1}, Bits: 24, Timestamp: 3, Nonces: pow.Range{First: 1, Last: 9}, ChunkSize: 2},
		GrantWork{JobID: 1, Miner: "a", Instance: ID{3}, RequestID: 4, Chunks: 5},
		Finish{JobID: 1, GrantID: 2, Miner: "a", Timestamp: 3, Nonces: pow.Range{First: 4, Last: 5}, Receipt: 6},
		Solve{JobID: 1, GrantID: 2, Miner: "a", Timestamp: 3, Nonce: 4},
		Release{Miner: "a", GrantIDs: []uint64{1, 1 << 63}, Reason: ReleaseRefused, Forget: true},
		Strike{Miner: "a", Reason: "wrong receipt"},
		Roll{JobID: 1, Round: 2, Timestamp: 3},
		Submitting{JobID: 1},
		Submitted{JobID: 1, Verdict: VerdictUnknown, Detail: "timeout"},
		CloseJob{JobID: 1, Reason: "moved"},
		Revoke{JobID: 1, Round: 2, Miner: "a", Ranges: []pow.Range{{First: 1, Last: 2}, {First: 5, Last: 6}}, Reason: "audit"},
		ClusterStop{Reason: "planned"},
		Recover{RecoveryID: ID{4}, Survivor: 1, Index: 2, Term: 3, Head: pow.Hash{5}},
	}
}

func encode(t testing.TB, commands ...Command) []byte {
	t.Helper()
	data, err := EncodeEntry(Entry{LeaderID: 7, UnixMilli: 8, Version: "v1", Commands: commands})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestEntryComesBackAsItWas(t *testing.T) {
	commands := everyCommand()
	fields := (&fsmpb.Command{}).ProtoReflect().Descriptor().Oneofs().Get(0).Fields()
	if len(commands) != fields.Len() {
		t.Fatalf("%d commands are tested, the schema has %d", len(commands), fields.Len())
	}
	want := Entry{LeaderID: 7, UnixMilli: 8, Version: "v1", Commands: commands}
	for _, command := range commands { // a field that is not set would not be tested
		if value := reflect.ValueOf(command); value.NumField() > 0 {
			for i := range value.NumField() {
				if value.Field(i).IsZero() {
					t.Errorf("%T has no %s", command, value.Type().Field(i).Name)
				}
			}
		}
	}
	data := encode(t, commands...)
	got, err := DecodeEntry(data)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("it is\n%+v, want\n%+v: %v", got, want, err)
	}
	if data[0] != 1 || !bytes.Equal(data, encode(t, commands...)) {
		t.Error("the same entry has other bytes, or another version")
	}
	if got, err := DecodeEntry(encode(t)); err != nil || got.Commands != nil {
		t.Errorf("an entry without commands is %+v: %v", got, err)
	}
	zero := []Command{OpenJob{}, AddServer{}, Recover{}, TakeOffice{}} // zeros are values too
	if got, err := DecodeEntry(encode(t, zero...)); err != nil || !reflect.DeepEqual(got.Commands, zero) {
		t.Errorf("zeros are %+v: %v", got.Commands, err)
	}
}

func long(n int) string { return strings.Repeat("x", n) }

// unfit are commands that no entry may hold.
func unfit() map[string]Command {
	name := long(MaxMinerName + 1)
	return map[string]Command{
		"no cluster id so long":  OpenCluster{long(MaxClusterID + 1)},
		"a long address":         AddServer{Address: long(MaxAddress + 1)},
		"a long directory":       AddServer{DataDir: long(MaxPath + 1)},
		"a long machine id":      UpdateServer{Host: Host{MachineID: long(MaxHostText + 1)}},
		"a long boot id":         UpdateServer{Host: Host{BootID: long(MaxHostText + 1)}},
		"a directory not UTF-8":  UpdateServer{DataDir: "/\xff"},
		"a long removal reason":  RemoveServer{Reason: long(MaxText + 1)},
		"a long down reason":     ServerDown{Reason: long(MaxText + 1)},
		"a reason not UTF-8":     ServerDown{Reason: "\xff"},
		"negative bits":          OpenJob{Bits: -1},
		"absurd bits":            OpenJob{Bits: 1<<30 + 1},
		"a long miner":           GrantWork{Miner: name},
		"an empty miner":         Finish{},
		"a miner with a space":   Solve{Miner: "a b"},
		"a miner with a newline": Release{Miner: "a\n", Reason: ReleaseLeft},
		"a miner beyond ASCII":   Strike{Miner: "é"},
		"a miner with a slash":   Revoke{Miner: "a/b"},
		"a long strike reason":   Strike{Miner: "a", Reason: long(MaxText + 1)},
		"no release reason":      Release{Miner: "a"},
		"a new release reason":   Release{Miner: "a", Reason: ReleaseRefused + 1},
		"too many grant ids":     Release{Miner: "a", Reason: ReleaseLeft, GrantIDs: make([]uint64, MaxListed+1)},
		"no verdict":             Submitted{},
		"a new verdict":          Submitted{Verdict: VerdictUnknown + 1},
		"a long detail":          Submitted{Verdict: VerdictWrong, Detail: long(MaxText + 1)},
		"a long close reason":    CloseJob{Reason: long(MaxText + 1)},
		"too many ranges":        Revoke{Miner: "a", Ranges: make([]pow.Range, MaxListed+1)},
		"a long revoke reason":   Revoke{Miner: "a", Reason: long(MaxText + 1)},
		"a long stop reason":     ClusterStop{Reason: long(MaxText + 1)},
	}
}

func TestUnfitCommandIsRefusedByBothEnds(t *testing.T) {
	for name, command := range unfit() {
		t.Run(name, func(t *testing.T) {
			if _, err := EncodeEntry(Entry{Commands: []Command{command}}); !errors.Is(err, ErrUnfitEntry) {
				t.Errorf("it is encoded: %v", err)
			}
			data, err := proto.Marshal(&fsmpb.Entry{Commands: []*fsmpb.Command{storeCommand(command)}})
			if err != nil {
				return // protobuf cannot carry it
			}
			if command, err := DecodeEntry(append([]byte{EntryVersion}, data...)); !errors.Is(err, ErrBadEntry) {
				t.Errorf("it is decoded as %+v: %v", command, err)
			}
		})
	}
	longest := []Command{
		AddServer{Address: long(MaxAddress), DataDir: long(MaxPath), Host: Host{long(MaxHostText), long(MaxHostText)}},
		Strike{Miner: long(MaxMinerName), Reason: long(MaxText)},
		Release{Miner: "A-z_0.9", Reason: ReleaseLeft, GrantIDs: make([]uint64, MaxListed)},
	}
	if got, err := DecodeEntry(encode(t, longest...)); err != nil || !reflect.DeepEqual(got.Commands, longest) {
		t.Errorf("the longest texts do not come back: %v", err)
	}
}

func TestEntryBeyondItsLimitsIsRefused(t *testing.T) {
	check := func(what string, entry Entry) {
		t.Helper()
		if _, err := EncodeEntry(entry); !errors.Is(err, ErrUnfitEntry) {
			t.Errorf("%s is encoded: %v", what, err)
		}
	}
	check("too many commands", Entry{Commands: make([]Command, MaxCommands+1)})
	check("a long version", Entry{Version: long(MaxVersion + 1)})
	check("a nil command", Entry{Commands: []Command{nil}})
	check("a pointer", Entry{Commands: []Command{&ServerUp{}}})
	large := make([]Command, 1000)
	for i := range large {
		large[i] = AddServer{DataDir: long(MaxPath), Address: long(MaxAddress)}
	}
	check("more than 4 MiB", Entry{Commands: large})
	most := make([]Command, MaxCommands)
	for i := range most {
		most[i] = ServerUp{1}
	}
	if _, err := DecodeEntry(encode(t, most...)); err != nil {
		t.Errorf("as many commands as may be: %v", err)
	}
}

func TestBadEntryIsRefusedWithItsVersion(t *testing.T) {
	stored := func(entry *fsmpb.Entry) []byte {
		data, err := proto.Marshal(entry)
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{EntryVersion}, data...)
	}
	command := func(c *fsmpb.Command) []byte { return stored(&fsmpb.Entry{Commands: []*fsmpb.Command{c}}) }
	addServer := func(id []byte) []byte {
		return command(&fsmpb.Command{Command: &fsmpb.Command_AddServer{AddServer: &fsmpb.AddServer{RequestId: id}}})
	}
	release := func(reason fsmpb.ReleaseReason) []byte {
		return command(&fsmpb.Command{Command: &fsmpb.Command_Release{Release: &fsmpb.Release{Miner: "a", Reason: reason}}})
	}
	recovery := func(id, head []byte) []byte {
		return command(&fsmpb.Command{Command: &fsmpb.Command_Recover{Recover: &fsmpb.Recover{RecoveryId: id, Head: head}}})
	}
	many := []byte{EntryVersion}
	for range MaxCommands + 1 {
		many = append(many, 4<<3|2, 0)
	}
	for name, bad := range map[string]struct {
		data []byte
		says string
	}{
		"nothing":               {nil, "empty"},
		"version 0":             {[]byte{0}, "version 0"},
		"version 2":             {[]byte{2, 1, 2}, "version 2"},
		"no protobuf":           {[]byte{1, 0xff}, "version 1"},
		"cut off":               {encode(t, everyCommand()...)[:60], "version 1"},
		"no command":            {command(&fsmpb.Command{}), "no command is set"},
		"a short request id":    {addServer(make([]byte, 15)), "15 bytes, want 16"},
		"no request id":         {addServer(nil), "0 bytes, want 16"},
		"a long request id":     {addServer(make([]byte, 17)), "17 bytes, want 16"},
		"a short recovery id":   {recovery(make([]byte, 15), make([]byte, 32)), "recovery_id"},
		"a short head":          {recovery(make([]byte, 16), make([]byte, 31)), "head"},
		"an unknown reason":     {release(99), "unknown value 99"},
		"a reason one byte off": {release(257), "unknown value 257"},
		"no reason":             {release(0), "release reason 0"},
		"no nonces": {command(&fsmpb.Command{Command: &fsmpb.Command_Finish{Finish: &fsmpb.Finish{Miner: "a"}}}),
			"nonces are missing"},
		"no previous hash": {command(&fsmpb.Command{Command: &fsmpb.Command_OpenJob{OpenJob: &fsmpb.OpenJob{
			Nonces: &fsmpb.Range{}}}}), "previous has 0 bytes"},
		"a short instance": {command(&fsmpb.Command{Command: &fsmpb.Command_GrantWork{GrantWork: &fsmpb.GrantWork{
			Miner: "a", Instance: []byte{1}}}}), "instance has 1 bytes"},
		"a long version":    {stored(&fsmpb.Entry{Version: long(MaxVersion + 1)}), "software version"},
		"too many commands": {many, "more than 65536 commands"},
		"too many bytes":    {make([]byte, MaxEntrySize+1), "version 0"},
		"too many bytes, well-formed": {append([]byte{1}, stored(&fsmpb.Entry{Version: long(MaxEntrySize)})[1:]...),
			"want at most 4194304"},
	} {
		_, err := DecodeEntry(bad.data)
		if !errors.Is(err, ErrBadEntry) || !strings.Contains(fmt.Sprint(err), bad.says) {
			t.Errorf("%s: %v, want %q", name, err, bad.says)
		}
	}
}

// Every message that an entry may hold, at every depth, refuses a field that it does not know: a newer leader's field
// must not be ignored.
func TestUnknownFieldIsRefusedEverywhere(t *testing.T) {
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1)
	refused := make(map[protoreflect.FullName]bool)
	var visit func(root *fsmpb.Entry, message protoreflect.Message)
	visit = func(root *fsmpb.Entry, message protoreflect.Message) {
		message.SetUnknown(unknown)
		data, err := proto.Marshal(root)
		if err != nil {
			t.Fatal(err)
		}
		name := message.Descriptor().FullName()
		_, err = DecodeEntry(append([]byte{EntryVersion}, data...))
		if !errors.Is(err, ErrBadEntry) || !strings.Contains(fmt.Sprint(err), string(name)+" has unknown field 999") {
			t.Errorf("%s: %v", name, err)
		}
		refused[name] = true
		message.SetUnknown(nil)
		message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
			switch {
			case field.Kind() == protoreflect.MessageKind && field.IsList():
				for i := range value.List().Len() {
					visit(root, value.List().Get(i).Message())
				}
			case field.Kind() == protoreflect.MessageKind:
				visit(root, value.Message())
			}
			return true
		})
	}
	for _, command := range everyCommand() {
		entry := &fsmpb.Entry{Commands: []*fsmpb.Command{storeCommand(command)}}
		visit(entry, entry.ProtoReflect())
	}
	// 21 commands, Entry, Command, Range and Host.
	if len(refused) != 25 {
		t.Errorf("%d kinds of messages were tried, want 25", len(refused))
	}
}

func TestLineMakesTextFit(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "",
		" success\r\n":              "success",
		"a\nb\x00c\u0085d":          "a b c d",
		"bad \xff\xfe bytes":        "bad \uFFFD bytes",
		long(MaxText + 1):           long(MaxText),
		long(MaxText-1) + "é":       long(MaxText - 1),
		strings.Repeat("é", 10_000): strings.Repeat("é", MaxText/2),
		strings.Repeat("\xff", 999): strings.Repeat("\uFFFD", 1),
	} {
		if got := Line(text); got != want {
			t.Errorf("Line(%.20q) = %q, want %q", text, got, want)
		}
		if err := checkText("text", Line(text), MaxText); err != nil {
			t.Error(err)
		}
	}
}
