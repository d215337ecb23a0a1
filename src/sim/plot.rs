//! Pictures of results, as SVG: bars with intervals, and lines. Readable on light and on dark pages; the same numbers give the
//! same bytes.

use std::fmt::Write as _;

use crate::estimate::Estimate;

const WIDTH: f64 = 760.0;
/// Left of the plot, for labels; right of it, for the names of lines.
const LEFT: f64 = 120.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 44.0;
const BAR: f64 = 24.0;
const LINES_HEIGHT: f64 = 300.0;
/// A line's name needs so much room.
const NAME: f64 = 14.0;
/// Beyond this ratio of the largest to the smallest an axis is logarithmic.
const LOG_RATIO: f64 = 12.0;

/// Colours apart from each other, of middling lightness: the same on both pages. The first is the one to be looked at.
const COLOURS: [&str; 10] =
    ["#d6453d", "#3f7fd0", "#2f9e63", "#b8860b", "#8a63d2", "#c2608f", "#4aa3b5", "#8c7a5b", "#7d8a99", "#a3733c"];

const STYLE: &str = "<style>\
.page{fill:#fff}.ink{fill:#24292f}.soft{fill:#57606a}.grid{stroke:#d0d7de;stroke-width:1}.whisker{stroke:#24292f;stroke-width:1.5}\
text{font:12px system-ui,sans-serif}.title{font-weight:600;font-size:14px}\
@media(prefers-color-scheme:dark){.page{fill:#0d1117}.ink{fill:#e6edf3}.soft{fill:#9198a1}.grid{stroke:#30363d}\
.whisker{stroke:#e6edf3}}</style>";

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Its name.
    pub name: String,
    /// How long it is, and how sure that is.
    pub value: Estimate,
    /// Its colour, by number; 0 is the one to be looked at.
    pub colour: usize,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// By the places on the x axis; a gap where there is none.
    pub values: Vec<Option<f64>>,
    /// Its colour, by number; 0 is the one to be looked at, and drawn thicker.
    pub colour: usize,
}

/// Bars one below the other, each with its interval.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let height = TOP + BOTTOM + BAR * bars.len() as f64;
    let axis = Axis::over(bars.iter().flat_map(|bar| [bar.value.low(), bar.value.mean, bar.value.high()]));
    let right = WIDTH - 70.0;
    let x = |value: f64| LEFT + axis.place(value) * (right - LEFT);
    let mut svg = open(title, height);
    for tick in axis.ticks() {
        let at = x(tick);
        vertical(&mut svg, at, TOP, height - BOTTOM);
        text(&mut svg, at, height - BOTTOM + 16.0, "middle", "soft", &short(tick));
    }
    for (bar, row) in bars.iter().zip(0..) {
        let top = TOP + BAR * f64::from(row);
        let (middle, from, to) = (top + BAR / 2.0, x(axis.low), x(bar.value.mean));
        text(&mut svg, LEFT - 8.0, middle + 4.0, "end", "ink", &bar.name);
        let colour = COLOURS[bar.colour % COLOURS.len()];
        let _ = writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
            top + 4.0,
            (to - from).max(1.0),
            BAR - 8.0
        );
        let (low, high) = (x(bar.value.low()), x(bar.value.high()));
        if high - low > 1.0 {
            for (x1, y1, x2, y2) in [
                (low, middle, high, middle),
                (low, middle - 4.0, low, middle + 4.0),
                (high, middle - 4.0, high, middle + 4.0),
            ] {
                let _ = writeln!(
                    svg,
                    "<line class=\"whisker\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
                );
            }
        }
        text(&mut svg, high.max(to) + 6.0, middle + 4.0, "start", "ink", &short(bar.value.mean));
    }
    close(svg, unit, height)
}

/// Lines over places on the x axis, of which as many are named as there is room for.
pub fn lines(title: &str, unit: &str, places: &[String], lines: &[Line]) -> String {
    let height = TOP + BOTTOM + LINES_HEIGHT;
    let axis = Axis::over(lines.iter().flat_map(|line| line.values.iter().copied().flatten()));
    let (left, right, bottom) = (60.0, WIDTH - RIGHT, height - BOTTOM);
    let x = |at: usize| left + (right - left) * at as f64 / (places.len().max(2) - 1) as f64;
    let y = |value: f64| bottom - axis.place(value) * LINES_HEIGHT;
    let mut svg = open(title, height);
    for tick in axis.ticks() {
        let at = y(tick);
        let _ =
            writeln!(svg, "<line class=\"grid\" x1=\"{left:.1}\" y1=\"{at:.1}\" x2=\"{right:.1}\" y2=\"{at:.1}\"/>");
        text(&mut svg, left - 6.0, at + 4.0, "end", "soft", &short(tick));
    }
    for at in (0..places.len()).step_by(places.len().div_ceil(12).max(1)) {
        text(&mut svg, x(at), bottom + 16.0, "middle", "soft", &places[at]);
    }
    // The one to be looked at lies on top.
    for line in lines.iter().rev() {
        let (colour, width) = (COLOURS[line.colour % COLOURS.len()], if line.colour == 0 { 3.0 } else { 1.5 });
        for stretch in stretches(&line.values) {
            let points: Vec<String> =
                stretch.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
            let points = points.join(" ");
            let _ = writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" points=\"{points}\"/>"
            );
        }
    }
    // Names stand where their lines end, moved apart where they would touch.
    let mut names: Vec<(f64, &Line)> =
        lines.iter().filter_map(|line| Some((y(line.values.iter().rev().copied().find_map(|v| v)?), line))).collect();
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut above = f64::MIN;
    let lowest = bottom + BOTTOM - NAME;
    let mut left_over = names.len() as f64;
    for (wanted, line) in names {
        left_over -= 1.0;
        above = wanted.min(lowest - left_over * NAME).max(above + NAME);
        let colour = COLOURS[line.colour % COLOURS.len()];
        let (x, y) = (right + 8.0, above + 4.0);
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{colour}\">{}</text>", escaped(&line.name));
    }
    close(svg, unit, height)
}

/// The parts of a line between its gaps.
fn stretches(values: &[Option<f64>]) -> Vec<Vec<(usize, f64)>> {
    let mut all = vec![Vec::new()];
    for (at, value) in values.iter().enumerate() {
        match value {
            Some(value) => all.last_mut().into_iter().for_each(|stretch| stretch.push((at, *value))),
            None => all.push(Vec::new()),
        }
    }
    all.retain(|stretch| !stretch.is_empty());
    all
}

/// From the least to the most that is to be shown.
#[derive(Debug, Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let positive: Vec<f64> = values.filter(|value| value.is_finite() && *value > 0.0).collect();
        let (least, most) =
            (positive.iter().copied().fold(f64::MAX, f64::min), positive.iter().copied().fold(0.0, f64::max));
        if most == 0.0 {
            return Self { low: 0.0, high: 1.0, log: false };
        }
        if most / least <= LOG_RATIO {
            return Self { low: 0.0, high: most * 1.02, log: false };
        }
        Self { low: least * 0.9, high: most * 1.1, log: true }
    }

    /// Where a value is, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let value = if value.is_finite() { value.clamp(self.low, self.high) } else { self.low };
        if self.log {
            return (value / self.low).ln() / (self.high / self.low).ln();
        }
        (value - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        if self.log {
            let decades = (self.high / self.low).log10();
            let mut decade = 10_f64.powf(self.low.log10().floor());
            while decade <= self.high {
                let within: &[f64] = if decades > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                ticks.extend(within.iter().map(|step| step * decade));
                decade *= 10.0;
            }
        } else {
            let rough = (self.high - self.low) / 6.0;
            let decade = 10_f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|s| s * decade).find(|s| *s >= rough).unwrap_or(rough);
            ticks.extend((0..=10).map(|n| f64::from(n) * step));
        }
        ticks.retain(|tick| (self.low..=self.high).contains(tick));
        ticks
    }
}

fn open(title: &str, height: f64) -> String {
    let title = escaped(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">\n\
         {STYLE}\n<rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"ink title\" x=\"12\" y=\"24\">{title}</text>\n"
    )
}

fn close(mut svg: String, unit: &str, height: f64) -> String {
    text(&mut svg, 12.0, height - 10.0, "start", "soft", unit);
    svg.push_str("</svg>\n");
    svg
}

fn vertical(svg: &mut String, x: f64, from: f64, to: f64) {
    let _ = writeln!(svg, "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{from:.1}\" x2=\"{x:.1}\" y2=\"{to:.1}\"/>");
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, words: &str) {
    let words = escaped(words);
    let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

/// Three digits, and no more.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        small if small < 9.995 => 2,
        medium if medium < 99.95 => 1,
        _ => 0,
    };
    let written = format!("{value:.digits$}");
    if digits == 0 { written } else { written.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let written = [0.0, 0.254, 5.0, 9.999, 12.34, 99.97, 1234.5].map(short);
        assert_eq!(written, ["0", "0.25", "5", "10", "12.3", "100", "1234"]);
    }

    #[test]
    fn an_axis_is_logarithmic_where_values_are_far_apart_and_has_ticks_within() {
        let near = Axis::over([4.0, 13.0].into_iter());
        assert!(!near.log && near.low == 0.0 && near.place(0.0) == 0.0);
        assert_eq!(near.ticks(), [0.0, 5.0, 10.0]);
        let far = Axis::over([4.0, 400.0, f64::NAN, -1.0].into_iter());
        assert!(far.log && far.place(4.0) > 0.0 && far.place(400.0) < 1.0 && far.place(0.0) == 0.0);
        assert_eq!(far.ticks(), [5.0, 10.0, 20.0, 50.0, 100.0, 200.0]);
        assert!(!Axis::over([].into_iter()).ticks().is_empty());
    }

    #[test]
    fn pictures_are_whole_whatever_is_in_them() {
        let bar =
            |name: &str, mean| Bar { name: name.to_owned(), value: Estimate { mean, half: 0.2, count: 9 }, colour: 11 };
        let picture = bars("a < b & \"c\"", "service times", &[bar("<x>", 5.0), bar("y", f64::NAN), bar("z", 0.0)]);
        assert!(picture.contains("a &lt; b &amp; &quot;c&quot;") && picture.contains("&lt;x&gt;"), "{picture}");
        assert_eq!(picture.matches("<rect").count(), 4);
        assert!(!picture.contains("\"NaN"), "{picture}");
        let places: Vec<String> = (0..100).map(|at| at.to_string()).collect();
        let values = |of: f64| (0..100).map(|at| (at % 10 != 3).then_some(of + f64::from(at))).collect();
        let line = |name: &str, of| Line { name: name.to_owned(), values: values(of), colour: 0 };
        let picture = lines("t", "u", &places, &[line("a", 1.0), line("b", 1.1)]);
        assert_eq!(picture.matches("<polyline").count(), 22, "eleven stretches each");
        for picture in [picture, lines("t", "u", &[], &[]), bars("t", "u", &[])] {
            assert!(
                picture.starts_with("<svg") && picture.ends_with("</svg>\n") && !picture.contains("NaN"),
                "{picture}"
            );
        }
    }
}
