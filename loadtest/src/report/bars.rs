//! Bars as SVG: a figure of several beside one another.

use std::fmt::Write as _;

use super::svg::{LETTER, STYLE, WIDTH, escape, number};

/// Where the first bar begins, how high each is, and how far from one to the next.
const TOP: f64 = 36.0;
const BAR: f64 = 18.0;
const STEP: f64 = 28.0;
/// Room for a figure beyond the longest bar.
const FIGURE: f64 = 80.0;

/// Figures by name, the first in a colour of its own.
#[derive(Clone, Debug)]
pub(crate) struct Bars {
    pub(crate) title: &'static str,
    /// After the title: what they are in, or which way is better.
    pub(crate) about: &'static str,
    pub(crate) bars: Vec<(String, f64)>,
}

impl Bars {
    /// By itself, with its style.
    pub(crate) fn file(&self) -> String {
        self.svg(&format!("<style>{STYLE}</style>"))
    }

    /// To stand in a page that has the style.
    pub(crate) fn inline(&self) -> String {
        self.svg("")
    }

    fn svg(&self, style: &str) -> String {
        let letters = self.bars.iter().map(|(name, _)| name.chars().count()).max();
        let left = (letters.unwrap_or(0) as f64 * LETTER + 30.0).min(WIDTH / 2.0);
        let longest = self.bars.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        let height = TOP + STEP * self.bars.len() as f64;
        let mut out = format!(
            "<svg class=\"plot\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
             aria-label=\"{title}\">{style}<rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\
             <text class=\"title\" x=\"16\" y=\"20\">{title}, {}</text>",
            escape(self.about),
            title = escape(self.title),
        );
        for (at, (name, value)) in self.bars.iter().enumerate() {
            // What has no figure has no bar.
            let (share, figure) = match value.is_finite() {
                true => (value / longest.max(1e-9), number(*value)),
                false => (0.0, "–".to_owned()),
            };
            let (y, width) = (TOP + STEP * at as f64, share * (WIDTH - left - FIGURE));
            let class = if at == 0 { "own" } else { "other" };
            // Writing to a string does not fail.
            let _ = write!(
                out,
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>\
                 <text x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>\
                 <text x=\"{:.1}\" y=\"{base:.1}\">{figure}</text>",
                left - 8.0,
                escape(name),
                left + width + 8.0,
                base = y + BAR - 4.0,
            );
        }
        out.push_str("</svg>");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_fills_its_room_and_what_was_not_measured_has_none() {
        let bars = Bars {
            title: "Messages",
            about: "/s",
            bars: vec![
                ("own".into(), 50.0),
                ("<b>".into(), 100.0),
                ("stuck".into(), f64::NAN),
            ],
        };
        let svg = bars.file();
        let widths: Vec<f64> = svg
            .split("<rect class=\"o")
            .skip(1)
            .map(|bar| {
                let width = bar.split("width=\"").nth(1).unwrap();
                width.split('"').next().unwrap().parse().unwrap()
            })
            .collect();
        let [own, longest, none] = widths[..] else {
            panic!("{svg}")
        };
        assert!(
            longest > WIDTH / 2.0 && (own * 2.0 - longest).abs() < 0.3 && none == 0.0,
            "{widths:?}"
        );
        assert!(
            svg.contains("&lt;b&gt;") && svg.contains("–") && !svg.contains("NaN"),
            "{svg}"
        );
        let empty = Bars {
            bars: Vec::new(),
            ..bars
        };
        assert!(!empty.inline().contains("NaN"));
    }
}
