//! Printing: to standard output whole, and in columns.

use std::io::{self, Write as _};

use serde::Serialize;

/// Prints a text. A reader that has gone away, as `head` does, wants no more of it: that is no failure.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Prints a value as JSON, over several lines.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    Ok(print(&format!("{text}\n"))?)
}

/// Rows in columns, the first row being their heads. What comes from peers cannot move the cursor.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows
        .iter()
        .map(|row| row.each_ref().map(|cell| plain(cell)))
        .collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Without control characters.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Octets for people.
pub(super) fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while size >= 1024.0
        && let Some(larger) = units.next()
    {
        (size, unit) = (size / 1024.0, larger);
    }
    if unit == "B" {
        format!("{bytes} B")
    } else {
        format!("{size:.1} {unit}")
    }
}

/// What is about several parts, each that there is by its kind and name: `tenant shop, provider google`.
pub(super) fn named<'a>(parts: impl IntoIterator<Item = (&'a str, &'a Option<String>)>) -> String {
    let named = parts
        .into_iter()
        .filter_map(|(what, name)| Some(format!("{what} {}", name.as_ref()?)));
    named.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_hold_no_controls() {
        let rows =
            [["A", "B", "C"], ["long", "", "x\x1b[2J"], ["ü", "b", ""]].map(|row| row.map(String::from));
        assert_eq!(columns(&rows), "A     B  C\nlong     x\u{fffd}[2J\nü     b\n");
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_536, "1.5 KiB"),
            (25 << 20, "25.0 MiB"),
            (3 << 42, "12288.0 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
