//! Line plots over time as SVG: no library, no script, readable in light and dark.

use std::fmt::Write as _;

/// Of the picture, and where its plot begins and ends.
pub(super) const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 52.0;
const BOTTOM: f64 = 34.0;
/// Of a letter in the legend, near enough.
pub(super) const LETTER: f64 = 6.3;

/// Colours and strokes; a page that has the plots inline says it once.
pub(crate) const STYLE: &str = "\
.plot{--ink:#1c2430;--faint:#6b7686;--grid:#e3e7ed;--c0:#2563eb;--c1:#d9480f;--c2:#7c3aed;--c3:#0f8a5f;--paper:#fff}\
@media(prefers-color-scheme:dark){.plot{--ink:#e6eaf0;--faint:#98a3b3;--grid:#2c3542;--c0:#6ea0ff;--c1:#ff8a5c;--c2:#b794ff;--c3:#4cc99a;--paper:#161c25}}\
.plot text{font:12px system-ui,sans-serif;fill:var(--faint)}\
.plot .title{font-weight:600;font-size:14px;fill:var(--ink)}\
.plot .grid{stroke:var(--grid);stroke-width:1}\
.plot .event{stroke:var(--faint);stroke-width:1;stroke-dasharray:2 3}\
.plot path{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}\
.plot .dashed{stroke-dasharray:5 4;stroke-width:1.4}\
.plot .c0{stroke:var(--c0)}.plot .c1{stroke:var(--c1)}.plot .c2{stroke:var(--c2)}.plot .c3{stroke:var(--c3)}\
.plot .own{fill:var(--c0)}.plot .other{fill:var(--c1)}.plot .paper{fill:var(--paper)}";

/// How values stand on the axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From none.
    Linear,
    /// By powers of ten.
    Log,
}

/// One line of a plot.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: &'static str,
    /// Seconds and values, in order.
    pub(crate) points: Vec<(f64, f64)>,
    /// From 0 to 3.
    pub(crate) colour: usize,
    pub(crate) dashed: bool,
}

/// A plot.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) scale: Scale,
    pub(crate) lines: Vec<Line>,
    /// Seconds, and what happened then.
    pub(crate) events: Vec<(f64, String)>,
    /// Length of the axis.
    pub(crate) seconds: f64,
    /// Points further apart than so many seconds are not joined.
    pub(crate) gap: f64,
}

impl Chart {
    /// By itself, with its style.
    pub(crate) fn file(&self) -> String {
        self.svg(&format!("<style>{STYLE}</style>"))
    }

    /// To stand in a page that has the style.
    pub(crate) fn inline(&self) -> String {
        self.svg("")
    }

    fn svg(&self, style: &str) -> String {
        let mut out = format!(
            "<svg class=\"plot\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{}\">{style}<rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\"/>\
             <text class=\"title\" x=\"{LEFT}\" y=\"20\">{}, {}</text>",
            escape(self.title),
            escape(self.title),
            escape(self.unit)
        );
        let axis = Axis::of(self);
        let x = |seconds: f64| LEFT + seconds / self.seconds.max(1e-9) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM);
        // Writing to a string does not fail.
        for tick in &axis.ticks {
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                y(*tick),
                y(*tick),
                LEFT - 8.0,
                y(*tick) + 4.0,
                number(*tick)
            );
        }
        let times = ticks(self.seconds, 8);
        for (at, tick) in times.iter().enumerate() {
            let unit = if at + 1 == times.len() { " s" } else { "" };
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}{unit}</text>",
                x(*tick).min(WIDTH - RIGHT - 10.0),
                HEIGHT - BOTTOM + 18.0,
                number(*tick)
            );
        }
        let mut free = f64::MIN;
        for (at, what) in &self.events {
            let (line, ends) = (x(*at), WIDTH - RIGHT - what.chars().count() as f64 * LETTER);
            let _ = write!(
                out,
                "<line class=\"event\" x1=\"{line:.1}\" x2=\"{line:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>",
                HEIGHT - BOTTOM
            );
            // Where the words of the one before reach, the line alone has to do.
            let begin = (line + 4.0).min(ends);
            if begin > free {
                let _ = write!(
                    out,
                    "<text x=\"{begin:.1}\" y=\"{:.1}\">{}</text>",
                    TOP + 10.0,
                    escape(what)
                );
                free = begin + what.chars().count() as f64 * LETTER;
            }
        }
        let mut legend = LEFT;
        for line in &self.lines {
            let class = format!("c{}{}", line.colour % 4, if line.dashed { " dashed" } else { "" });
            let _ = write!(out, "<path class=\"{class}\" d=\"{}\"/>", self.path(line, &x, &y));
            if self.lines.len() > 1 {
                let _ = write!(
                    out,
                    "<path class=\"{class}\" d=\"M{legend:.1} 36h18\"/><text x=\"{:.1}\" y=\"40\">{}</text>",
                    legend + 24.0,
                    escape(line.name)
                );
                legend += 44.0 + line.name.chars().count() as f64 * LETTER;
            }
        }
        out.push_str("</svg>");
        out
    }

    fn path(&self, line: &Line, x: &impl Fn(f64) -> f64, y: &impl Fn(f64) -> f64) -> String {
        let mut path = String::new();
        let mut last: Option<f64> = None;
        for &(at, value) in &line.points {
            let joined = last.is_some_and(|last| at - last <= self.gap);
            let verb = if joined { 'L' } else { 'M' };
            let _ = write!(path, "{verb}{:.1} {:.1}", x(at), y(value));
            if !joined {
                path.push_str("h0.1"); // a point by itself shows too
            }
            last = Some(at);
        }
        path
    }
}

/// The upright axis.
struct Axis {
    scale: Scale,
    least: f64,
    most: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn of(chart: &Chart) -> Self {
        let values = || {
            let points = chart.lines.iter().flat_map(|line| &line.points);
            points.map(|(_, value)| *value)
        };
        let highest = values().fold(0.0, f64::max);
        match chart.scale {
            Scale::Linear => {
                let ticks = ticks(if highest > 0.0 { highest } else { 1.0 }, 5);
                let most = ticks.last().copied().unwrap_or(1.0).max(highest * 1.02);
                Self {
                    scale: chart.scale,
                    least: 0.0,
                    most,
                    ticks,
                }
            }
            Scale::Log => {
                // From a power of ten to a power of ten, a hundredth of a millisecond at the least.
                let lowest = values().filter(|value| *value > 0.0).fold(f64::MAX, f64::min);
                let least = lowest.min(highest).clamp(0.01, 1e9).log10().floor();
                let most = highest.max(0.01).log10().ceil().max(least + 1.0);
                Self {
                    scale: chart.scale,
                    least,
                    most,
                    ticks: (least as i32..=most as i32)
                        .map(|power| 10_f64.powi(power))
                        .collect(),
                }
            }
        }
    }

    /// From 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(1e-9).log10(),
        };
        ((value - self.least) / (self.most - self.least).max(1e-9)).clamp(0.0, 1.0)
    }
}

/// Round numbers from 0 to a little above or below the highest, so many at the most.
fn ticks(highest: f64, most: usize) -> Vec<f64> {
    if !(highest.is_finite() && highest > 0.0) {
        return vec![0.0];
    }
    let rough = highest / most as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|times| times * power)
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(rough);
    (0..=(highest / step + 1e-9) as usize)
        .map(|number| number as f64 * step)
        .collect()
}

/// With thin spaces between thousands, and no more digits than it needs.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        value if value >= 100.0 || value.fract() == 0.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        let left = whole.len() - at;
        if at > 0 && left % 3 == 0 && whole.len() > 4 && digit.is_ascii_digit() {
            grouped.push('\u{2009}');
        }
        grouped.push(digit);
    }
    let rest = rest.trim_end_matches('0');
    if rest.is_empty() {
        grouped
    } else {
        format!("{grouped}.{rest}")
    }
}

/// For text and for attributes.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        assert_eq!(ticks(10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(6_043.0, 5), [0.0, 2_000.0, 4_000.0, 6_000.0]);
        assert_eq!(ticks(0.0, 5), [0.0]);
        assert!(ticks(f64::NAN, 5).len() == 1 && ticks(1e-5, 5).len() <= 6);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.1404, "0.14"),
            (0.0123, "0.012"),
            (12.34, "12.3"),
            (6_043.4, "6043"),
            (60_430.0, "60\u{2009}430"),
            (1_234_567.8, "1\u{2009}234\u{2009}568"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_plot_breaks_where_nothing_was_and_shows_nothing_that_is_no_number() {
        let chart = Chart {
            title: "a < b",
            unit: "ms",
            scale: Scale::Log,
            lines: vec![Line {
                name: "x",
                points: vec![(0.0, 0.0), (1.0, 50.0), (9.0, 700.0)],
                colour: 0,
                dashed: false,
            }],
            events: vec![(5.0, "killed".into())],
            seconds: 10.0,
            gap: 2.0,
        };
        let svg = chart.file();
        assert!(svg.contains("a &lt; b") && svg.contains("killed"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let path = svg.split("d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches('M').count(), 2, "{path}");
        let empty = Chart {
            lines: Vec::new(),
            seconds: 0.0,
            ..chart
        };
        assert!(!empty.inline().contains("NaN"));
    }
}
