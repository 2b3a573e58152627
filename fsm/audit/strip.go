package audit

// stripCells is the width of a Strip.
const stripCells = 64

// Strip is the whole history in a row of cells of equal time, for a timeline that fits on a line. It begins with the
// first record; each time the history grows out of it, two cells become one.
type Strip struct {
	From  uint64 // Unix milliseconds
	Width uint64 // milliseconds of a cell, a power of two
	Cells [stripCells]Cell
	Used  int // cells up to the last record
}

// Cell is what happened in one stretch of time.
type Cell struct {
	Records uint64
	Leader  uint64 // the last one to take office; 0: nobody did
	Terms   uint64
	Blocks  uint64 // accepted
	Faults  uint64 // servers down, ranges taken back, blocks not accepted, strikes, recoveries
}

// at returns the cell of a time. Clocks of different leaders differ: what seems to be before the first record counts
// with it.
func (s *Strip) at(unixMilli uint64) *Cell {
	if s.Width == 0 {
		s.From, s.Width = unixMilli, 1
	}
	since := unixMilli - min(s.From, unixMilli)
	for since/s.Width >= stripCells {
		for i := range stripCells / 2 {
			s.Cells[i] = s.Cells[2*i].with(s.Cells[2*i+1])
		}
		clear(s.Cells[stripCells/2:])
		s.Used = (s.Used + 1) / 2
		s.Width *= 2 // at most 2^58: then 64 cells hold every time
	}
	i := int(since / s.Width)
	s.Used = max(s.Used, i+1)
	return &s.Cells[i]
}

func (c Cell) with(next Cell) Cell {
	c.Records += next.Records
	c.Terms += next.Terms
	c.Blocks += next.Blocks
	c.Faults += next.Faults
	if next.Leader != 0 {
		c.Leader = next.Leader
	}
	return c
}
