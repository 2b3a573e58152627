package audit

import (
	"encoding/hex"
	"encoding/json"
	"reflect"
	"strings"
	"unicode"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// Readable returns what a record holds as JSON for people and scripts, on one line:
//
//	{"leader":1,"unix_ms":1790000000000,"version":"0.1.0","commands":[
//	  {"command":"grant_work","job_id":1,"miner":"a","instance":"...","request_id":1,"chunks":50,
//	   "outcome":"done","grant":{"id":1,"nonces":{"first":1,"last":5000000}}}]}
//
// A command is its type in package fsm: its name and its fields, in that order and in snake case. Hashes and ids are
// lower-case hex, reasons and verdicts words, lists never null, and texts are escaped as encoding/json does it. Then
// follows what it came to, without what says nothing: outcome, detail, new_server_id (add_server), new_job_id (open_job)
// and grant (grant_work). A submitted that was not taken has two members named detail, the command's and then the
// outcome's. Without outcomes, which come from all records before, the commands alone are told.
//
//	outcome    done, duplicate, no work, stale, released, wrong, refused
//	reason     of a release: silent, left, restarted, refused
//	verdict    success, wrong, stale, unknown
//
// All of these words belong to version 1, the texts of details too: testdata/audit/v1.words.jsonl has an example of each
// command and word, and testdata/fsm/v1.outcomes every detail.
func Readable(r Record, entry fsm.Entry, result fsm.Result) []byte {
	var out []byte
	out = append(out, `{"leader":`...)
	out = appendJSON(out, entry.LeaderID)
	out = append(out, `,"unix_ms":`...)
	out = appendJSON(out, entry.UnixMilli)
	out = append(out, `,"version":`...)
	out = appendJSON(out, entry.Version)
	out = append(out, `,"commands":[`...)
	for i, command := range entry.Commands {
		if i > 0 {
			out = append(out, ',')
		}
		value := reflect.ValueOf(command)
		out = append(out, `{"command":`...)
		out = appendJSON(out, snake(value.Type().Name()))
		out = appendFields(out, value, true)
		if len(result.Outcomes) > 0 {
			out = appendOutcome(out, result.Outcomes[i])
		}
		out = append(out, '}')
	}
	return append(out, "]}"...)
}

func appendOutcome(out []byte, outcome fsm.Outcome) []byte {
	out = append(out, `,"outcome":`...)
	out = appendJSON(out, outcome.Code.String())
	if outcome.Detail != "" {
		out = append(out, `,"detail":`...)
		out = appendJSON(out, outcome.Detail)
	}
	if outcome.ServerID != 0 {
		out = append(out, `,"new_server_id":`...)
		out = appendJSON(out, outcome.ServerID)
	}
	if outcome.JobID != 0 {
		out = append(out, `,"new_job_id":`...)
		out = appendJSON(out, outcome.JobID)
	}
	if outcome.Grant.ID != 0 {
		out = append(out, `,"grant":{"id":`...)
		out = appendJSON(out, outcome.Grant.ID)
		out = append(out, `,"nonces":`...)
		out = appendValue(out, reflect.ValueOf(outcome.Grant.Nonces))
		out = append(out, '}')
	}
	return out
}

// appendFields appends the fields of a struct; more says that others come before them.
func appendFields(out []byte, value reflect.Value, more bool) []byte {
	for i := range value.NumField() {
		if more {
			out = append(out, ',')
		}
		more = true
		out = appendJSON(out, snake(value.Type().Field(i).Name))
		out = append(out, ':')
		out = appendValue(out, value.Field(i))
	}
	return out
}

func appendValue(out []byte, value reflect.Value) []byte {
	switch v := value.Interface().(type) {
	case pow.Hash:
		return appendJSON(out, v.String())
	case fsm.ID:
		return appendJSON(out, hex.EncodeToString(v[:]))
	case fsm.ReleaseReason:
		return appendJSON(out, v.String())
	case fsm.Verdict:
		return appendJSON(out, v.String())
	}
	switch value.Kind() {
	case reflect.Struct:
		out = append(out, '{')
		out = appendFields(out, value, false)
		return append(out, '}')
	case reflect.Slice:
		out = append(out, '[')
		for i := range value.Len() {
			if i > 0 {
				out = append(out, ',')
			}
			out = appendValue(out, value.Index(i))
		}
		return append(out, ']')
	}
	return appendJSON(out, value.Interface())
}

// appendJSON appends a number, a bool or a text.
func appendJSON(out []byte, value any) []byte {
	text, err := json.Marshal(value)
	if err != nil { // not reached: such values always have a JSON form
		return append(out, "null"...)
	}
	return append(out, text...)
}

// snake turns a Go name into snake case: DataDir into data_dir, JobID into job_id, GrantIDs into grant_ids.
func snake(name string) string {
	var out strings.Builder
	runes := []rune(strings.ReplaceAll(name, "IDs", "Ids"))
	for i, r := range runes {
		if unicode.IsUpper(r) && i > 0 &&
			(unicode.IsLower(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			out.WriteByte('_')
		}
		out.WriteRune(unicode.ToLower(r))
	}
	return out.String()
}
