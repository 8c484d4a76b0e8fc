//! Text in columns.

/// Rows under a head, columns as wide as their widest cell; the last one is cut to `last` characters.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]], last: usize) -> String {
    let mut widths = head.map(chars);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(chars(cell));
        }
    }
    let mut text = line(&head.map(str::to_owned), &widths, last);
    let rule: usize = widths[..N - 1].iter().map(|width| width + GAP.len()).sum();
    text.push_str(&"─".repeat(rule + widths[N - 1].min(last)));
    text.push('\n');
    for row in rows {
        text.push_str(&line(row, &widths, last));
    }
    text
}

const GAP: &str = "  ";

fn line(cells: &[String], widths: &[usize], last: usize) -> String {
    let mut text = String::new();
    for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
        if at + 1 < cells.len() {
            text.push_str(cell);
            text.push_str(&" ".repeat(width - chars(cell)));
            text.push_str(GAP);
        } else if chars(cell) > last {
            text.extend(cell.chars().take(last.saturating_sub(1)));
            text.push('…');
        } else {
            text.push_str(cell);
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_in_line() {
        let rows = [["a", "✓ ü", "x"], ["bb", "", "a long reply"]].map(|row| row.map(str::to_owned));
        assert_eq!(
            table(["N", "two", "reply"], &rows, 7),
            "N   two  reply\n────────────────\na   ✓ ü  x\nbb       a long…\n"
        );
    }
}
