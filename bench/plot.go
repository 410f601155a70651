package main

import (
	"fmt"
	"image/color"
	"io"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The size of both plots together.
const plotWidth, plotHeight = 24 * vg.Centimeter, 10 * vg.Centimeter

// writePlot draws how time and memory grow, as SVG: on the left the time over that of 1 ×, beside the
// line of work that costs the same per row at any size; on the right the most memory of the process.
func writePlot(w io.Writer, results []*Result) error {
	timeAxes, memoryAxes := axes("time, × that of 1 ×"), axes("most memory of the process, MB")
	proportional := plotter.NewFunction(func(x float64) float64 { return x })
	proportional.Color, proportional.Dashes = color.Gray{128}, []vg.Length{vg.Points(4), vg.Points(3)}
	timeAxes.Add(proportional)
	timeAxes.Legend.Add("in proportion", proportional)
	limit := plotter.NewFunction(func(float64) float64 { return memoryGoal })
	limit.Color, limit.Dashes = proportional.Color, proportional.Dashes
	memoryAxes.Add(limit)
	memoryAxes.Y.Max = memoryGoal * 1.1
	memoryAxes.Legend.Add("goal", limit)

	drawn := 0
	for _, r := range results {
		name, ok := strings.CutPrefix(r.Scenario, "growth-")
		near := r.contender(times(1))
		if !ok || near == nil {
			continue
		}
		var grows, memory plotter.XYs
		for _, n := range factors() {
			c := r.contender(times(n))
			if c == nil {
				continue
			}
			grows = append(grows, plotter.XY{X: float64(n), Y: ratio(c, near).Value.Median})
			memory = append(memory, plotter.XY{X: float64(n), Y: c.spread(memoryName).Median})
		}
		if err := addLine(timeAxes, name, drawn, grows); err != nil {
			return err
		}
		if err := addLine(memoryAxes, name, drawn, memory); err != nil {
			return err
		}
		drawn++
	}
	if drawn == 0 {
		return fmt.Errorf("nothing to plot: run the scenario %q", growth{}.name())
	}
	canvas := vgsvg.New(plotWidth, plotHeight)
	tiles := draw.Tiles{Rows: 1, Cols: 2, PadX: vg.Centimeter, PadTop: vg.Points(6), PadBottom: vg.Points(4), PadRight: vg.Points(8)}
	for i, area := range plot.Align([][]*plot.Plot{{timeAxes, memoryAxes}}, tiles, draw.New(canvas))[0] {
		[]*plot.Plot{timeAxes, memoryAxes}[i].Draw(area)
	}
	_, err := canvas.WriteTo(w)
	return err
}

// axes returns an empty plot over the size of the work.
func axes(y string) *plot.Plot {
	p := plot.New()
	p.X.Label.Text, p.Y.Label.Text = "work, × the smallest", y
	p.X.Min, p.X.Max, p.Y.Min = 0, float64(factors()[len(factors())-1]), 0
	p.Legend.Top, p.Legend.Left, p.Legend.Padding = true, true, vg.Points(2)
	p.Add(plotter.NewGrid())
	return p
}

// addLine draws one line, in a colour that can also be told apart without seeing red or green.
func addLine(p *plot.Plot, name string, n int, points plotter.XYs) error {
	colors := []color.Color{color.RGBA{0, 114, 178, 255}, color.RGBA{213, 94, 0, 255}, color.RGBA{0, 158, 115, 255}}
	line, dots, err := plotter.NewLinePoints(points)
	if err != nil {
		return err
	}
	line.Color, line.Width = colors[n%len(colors)], vg.Points(1.5)
	dots.Color, dots.Shape = line.Color, draw.CircleGlyph{}
	p.Add(line, dots)
	p.Legend.Add(name, line)
	return nil
}
