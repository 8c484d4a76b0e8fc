//! Results as a page of HTML that needs no other file, and as SVG files.

pub(crate) mod bars;
pub(crate) mod over_time;
pub(crate) mod svg;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;

use bars::Bars;
use svg::{Chart, STYLE, escape};

/// A page.
#[derive(Default)]
pub(crate) struct Page {
    pub(crate) title: String,
    /// What holds for all of it: the machine, the command.
    pub(crate) facts: Facts,
    pub(crate) tables: Vec<Table>,
    pub(crate) sections: Vec<Section>,
}

/// Rows below a head.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) head: Vec<&'static str>,
    pub(crate) rows: Vec<Row>,
    /// What is to be known for reading it.
    pub(crate) note: String,
}

/// Cells; the first is a name, the others are figures.
pub(crate) struct Row {
    pub(crate) cells: Vec<String>,
    pub(crate) verdict: Verdict,
}

/// What a row or a section comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Holds,
    Fails,
    /// It was not measured.
    Open,
}

impl Verdict {
    pub(crate) fn of(holds: bool) -> Self {
        match holds {
            true => Self::Holds,
            false => Self::Fails,
        }
    }

    fn chip(self) -> &'static str {
        match self {
            Self::Holds => "<span class=\"chip ok\">✓ ok</span>",
            Self::Fails => "<span class=\"chip no\">✗ short</span>",
            Self::Open => "<span class=\"chip open\">not measured</span>",
        }
    }
}

/// One run.
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) about: String,
    pub(crate) verdict: Verdict,
    /// Names, figures, and what they are in.
    pub(crate) figures: Vec<(String, String)>,
    pub(crate) findings: Vec<String>,
    /// Each with a name for a file.
    pub(crate) plots: Vec<(&'static str, Plot)>,
}

/// A picture.
pub(crate) enum Plot {
    OverTime(Chart),
    Bars(Bars),
}

impl Plot {
    fn file(&self) -> String {
        match self {
            Self::OverTime(chart) => chart.file(),
            Self::Bars(bars) => bars.file(),
        }
    }

    fn inline(&self) -> String {
        match self {
            Self::OverTime(chart) => chart.inline(),
            Self::Bars(bars) => bars.inline(),
        }
    }
}

impl Page {
    /// The page's text.
    pub(crate) fn html(&self) -> String {
        let title = escape(&self.title);
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <title>{title}</title><style>{PAGE}{STYLE}</style></head><body><main><h1>{title}</h1><dl class=\"facts\">"
        );
        // Writing to a string does not fail.
        for (name, fact) in &self.facts {
            let _ = write!(
                out,
                "<div><dt>{}</dt><dd>{}</dd></div>",
                escape(name),
                escape(fact)
            );
        }
        out.push_str("</dl>");
        for table in &self.tables {
            table.write(&mut out);
        }
        for section in &self.sections {
            section.write(&mut out);
        }
        out.push_str("</main></body></html>\n");
        out
    }

    /// Writes the page, and its plots as files, where they are wanted.
    pub(crate) fn write(&self, page: Option<&Path>, plots: Option<&Path>) -> anyhow::Result<()> {
        if let Some(file) = page {
            fs::write(file, self.html()).with_context(|| file.display().to_string())?;
        }
        if let Some(folder) = plots {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            for section in &self.sections {
                for (name, plot) in &section.plots {
                    let file = folder.join(format!("{}-{name}.svg", section.title.replace(['/', ' '], "-")));
                    fs::write(&file, plot.file()).with_context(|| file.display().to_string())?;
                }
            }
        }
        Ok(())
    }
}

impl Table {
    fn write(&self, out: &mut String) {
        out.push_str("<div class=\"scroll\"><table><thead><tr>");
        for head in &self.head {
            let _ = write!(out, "<th>{}</th>", escape(head));
        }
        out.push_str("</tr></thead><tbody>");
        for row in &self.rows {
            out.push_str("<tr>");
            for (number, cell) in row.cells.iter().enumerate() {
                let chip = if number == 0 { row.verdict.chip() } else { "" };
                let _ = write!(out, "<td>{} {chip}</td>", escape(cell));
            }
            out.push_str("</tr>");
        }
        let _ = write!(
            out,
            "</tbody></table></div><p class=\"note\">{}</p>",
            escape(&self.note)
        );
    }
}

impl Section {
    fn write(&self, out: &mut String) {
        let _ = write!(
            out,
            "<section><h2>{} {}</h2><p>{}</p>",
            escape(&self.title),
            self.verdict.chip().replace("short", "does not hold"),
            escape(&self.about)
        );
        out.push_str("<div class=\"figures\">");
        for (name, figure) in &self.figures {
            let _ = write!(
                out,
                "<div><b>{}</b><span>{}</span></div>",
                escape(figure),
                escape(name)
            );
        }
        out.push_str("</div>");
        for finding in &self.findings {
            let _ = write!(out, "<p class=\"found\">{}</p>", escape(finding));
        }
        out.push_str("<div class=\"plots\">");
        for (_, plot) in &self.plots {
            out.push_str(&plot.inline());
        }
        out.push_str("</div></section>");
    }
}

/// Name and value of each.
pub(crate) type Facts = Vec<(&'static str, String)>;

/// What holds for every measurement here: when, where, by which command, and how busy the machine was before.
pub(crate) fn facts() -> Facts {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let line = |file: &str, name: &str| {
        let text = read(file);
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
            .unwrap_or_else(|| "unknown".to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kib: f64 = line("/proc/meminfo", "MemTotal")
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or(0.0);
    let kernel = read("/proc/sys/kernel/osrelease");
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let program = Path::new(&program)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    vec![
        (
            "when",
            jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
        ),
        (
            "processor",
            format!("{cores} × {}", line("/proc/cpuinfo", "model name")),
        ),
        ("memory", format!("{:.0} GiB", kib / f64::from(1 << 20))),
        ("kernel", format!("Linux {}", kernel.trim())),
        (
            "load before",
            read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        ),
        (
            "command",
            std::iter::once(program.into_owned())
                .chain(words)
                .collect::<Vec<_>>()
                .join(" "),
        ),
    ]
}

/// The page's own style; the plots' stands beside it.
const PAGE: &str = "\
:root{color-scheme:light dark;--ink:#1c2430;--faint:#5f6b7a;--line:#e3e7ed;--paper:#fff;--back:#f4f6f9;--ok:#0f7a52;--no:#b42318;--open:#8a6100}\
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--faint:#98a3b3;--line:#2c3542;--paper:#161c25;--back:#0e131a;--ok:#4cc99a;--no:#ff8a7a;--open:#e5b94e}}\
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}\
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}h1{font-size:26px;margin:0 0 14px}\
h2{font-size:19px;margin:0 0 4px;display:flex;gap:10px;align-items:center}\
.facts{display:flex;flex-wrap:wrap;gap:6px 28px;margin:0 0 22px}.facts dt{color:var(--faint);font-size:12px}\
.facts dd{margin:0;font-size:13px;overflow-wrap:anywhere}\
.scroll{overflow-x:auto;background:var(--paper);border:1px solid var(--line);border-radius:8px}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{padding:7px 12px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}\
tbody tr:last-child td{border-bottom:0}th{font-size:12px;font-weight:600;color:var(--faint);vertical-align:bottom}\
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:150px}\
.chip{font-size:12px;font-weight:600;border:1px solid currentColor;border-radius:99px;padding:1px 9px;white-space:nowrap}\
.ok{color:var(--ok)}.no{color:var(--no)}.open{color:var(--open)}\
.note{color:var(--faint);font-size:13px;margin:8px 2px 26px}\
section{background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:18px 20px;margin:0 0 18px}\
section p{margin:0 0 12px;color:var(--faint)}.found{color:var(--no)!important}\
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(165px,1fr));gap:12px 18px;margin:0 0 14px}\
.figures b{display:block;font-size:18px;font-variant-numeric:tabular-nums}.figures span{color:var(--faint);font-size:12.5px}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:12px}\
.plots svg{width:100%;height:auto;border:1px solid var(--line);border-radius:6px}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_stands_by_itself_and_escapes_what_it_is_told() {
        let page = Page {
            title: "a & b".into(),
            facts: facts(),
            tables: vec![Table {
                head: vec!["what", "figure"],
                rows: vec![Row {
                    cells: vec!["<x>".into(), "1".into()],
                    verdict: Verdict::Open,
                }],
                note: String::new(),
            }],
            sections: vec![Section {
                title: "relay".into(),
                about: String::new(),
                verdict: Verdict::of(false),
                figures: vec![("messages".into(), "5/s".into())],
                findings: vec!["1 < 2".into()],
                plots: Vec::new(),
            }],
        };
        let html = page.html();
        for part in [
            "a &amp; b",
            "&lt;x&gt;",
            "1 &lt; 2",
            "not measured",
            "does not hold",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        // Nothing is fetched from anywhere.
        for part in ["src=", "@import", "url(", "<script", "<link"] {
            assert!(!html.contains(part), "{part}");
        }
    }
}
