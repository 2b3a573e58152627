package fsm

import "cmp"

// checkServer checks what AddServer and UpdateServer say of a server.
func checkServer(address, dataDir string) (Outcome, bool) {
	if address == "" {
		return wrong("the server's address is empty"), false
	}
	if dataDir == "" {
		return wrong("the server's data directory is empty"), false
	}
	return Outcome{}, true
}

// addServer never updates: a server that asks twice has the same request id, and may have moved. UpdateServer says so.
func (s *step) addServer(c AddServer) Outcome {
	if c.RequestID == (ID{}) {
		return wrong("the request id is zero")
	}
	if outcome, ok := checkServer(c.Address, c.DataDir); !ok {
		return outcome
	}
	for i := range s.servers {
		if s.servers[i].RequestID == c.RequestID {
			return Outcome{Code: Duplicate, ServerID: s.servers[i].ID}
		}
	}
	row := Server{
		ID:        uint64(len(s.servers)) + 1,
		RequestID: c.RequestID,
		Address:   c.Address,
		DataDir:   c.DataDir,
		Host:      c.Host,
		Member:    true,
		Since:     s.index,
	}
	s.servers = append(s.servers, row)
	s.emit(ServerChanged{Server: row, Reason: "added"})
	return Outcome{Code: Done, ServerID: row.ID}
}

// updateServer is allowed for a removed server too: it says where it is before it is readmitted.
func (s *step) updateServer(c UpdateServer) Outcome {
	if outcome, ok := checkServer(c.Address, c.DataDir); !ok {
		return outcome
	}
	row := s.server(c.ServerID)
	if row == nil {
		return unknownServer(c.ServerID)
	}
	if row.Address == c.Address && row.DataDir == c.DataDir && row.Host == c.Host {
		return duplicate
	}
	row.Address, row.DataDir, row.Host = c.Address, c.DataDir, c.Host
	return done
}

func (s *step) readmitServer(c ReadmitServer) Outcome {
	row := s.server(c.ServerID)
	if row == nil {
		return unknownServer(c.ServerID)
	}
	return s.changeServer(row, true, false, row.Member, "readmitted")
}

func (s *step) removeServer(c RemoveServer) Outcome {
	row := s.server(c.ServerID)
	if row == nil {
		return unknownServer(c.ServerID)
	}
	return s.changeServer(row, false, false, !row.Member, cmp.Or(c.Reason, "removed"))
}

func (s *step) serverUp(c ServerUp) Outcome {
	row := s.server(c.ServerID)
	if row == nil {
		return unknownServer(c.ServerID)
	}
	if !row.Member {
		return refused("server %d is no member", c.ServerID)
	}
	return s.changeServer(row, true, true, row.Up, "up")
}

func (s *step) serverDown(c ServerDown) Outcome {
	row := s.server(c.ServerID)
	if row == nil {
		return unknownServer(c.ServerID)
	}
	return s.changeServer(row, row.Member, false, !row.Up, cmp.Or(c.Reason, "down"))
}

// changeServer sets both flags of a row, unless the command was done before.
func (s *step) changeServer(row *Server, member, up, before bool, reason string) Outcome {
	if before {
		return duplicate
	}
	row.Member, row.Up, row.Since = member, up, s.index
	s.emit(ServerChanged{Server: *row, Reason: reason})
	return done
}

func unknownServer(id uint64) Outcome { return refused("there is no server %d", id) }
