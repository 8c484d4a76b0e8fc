//! Group size and latency of durable accepts against load: a table, and a plot as SVG.
//!
//! A group is as large as what came in while the one before was synced, so both grow with the load by themselves.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use benches::{Shape, open, runtime};
use clap::Parser;
use plotters::prelude::*;
use tokio::task::JoinSet;

/// Group size and latency of durable accepts against load
#[derive(Parser)]
struct Cli {
    /// Where stores are made and removed again
    folder: PathBuf,
    /// The plot
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Octets of each message
    #[arg(long, default_value_t = 10 << 10)]
    bytes: usize,
    /// Messages accepted at each load, at most
    #[arg(long, default_value_t = 8_000)]
    messages: u64,
}

/// What one load came to.
struct Point {
    /// Messages waiting at a time.
    waiting: usize,
    per_second: f64,
    /// Messages a group.
    group: f64,
    /// Of a message, from submit to answer.
    median: Duration,
    p99: Duration,
}

fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    let shape = Shape::new(cli.bytes, 100);
    println!("| waiting | messages a second | messages a group | median | p99 |\n|---|---|---|---|---|");
    let mut points = Vec::new();
    for waiting in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] {
        let folder = cli.folder.join("curve");
        let messages = (waiting as u64 * 100).clamp(500, cli.messages.max(500));
        let point = measure(&folder, &shape, waiting, messages)?;
        std::fs::remove_dir_all(&folder)?;
        println!(
            "| {waiting} | {:.0} | {:.1} | {:.2} ms | {:.2} ms |",
            point.per_second,
            point.group,
            millis(point.median),
            millis(point.p99)
        );
        points.push(point);
    }
    match cli.svg {
        Some(path) => plot(&path, &points),
        None => Ok(()),
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn measure(folder: &Path, shape: &Shape, waiting: usize, messages: u64) -> Result<Point, Box<dyn Error>> {
    let queue = open(folder);
    let begun = Instant::now();
    let mut times = runtime().block_on(async {
        let mut under_way = JoinSet::new();
        let mut times = Vec::new();
        for number in 0..messages {
            if under_way.len() >= waiting {
                times.extend(under_way.join_next().await);
            }
            let (queue, message) = (queue.clone(), shape.message(number));
            under_way.spawn(async move {
                let begun = Instant::now();
                queue.accept(message).await.map(|_| begun.elapsed())
            });
        }
        times.extend(under_way.join_all().await.into_iter().map(Ok));
        times.into_iter().flatten().collect::<Result<Vec<_>, _>>()
    })?;
    let elapsed = begun.elapsed();
    queue.close();
    let groups = queue.groups();
    drop(queue);
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    Ok(Point {
        waiting,
        per_second: messages as f64 / elapsed.as_secs_f64(),
        group: messages as f64 / groups as f64,
        median: at(0.5),
        p99: at(0.99),
    })
}

/// Two panels with the load in common, all axes by powers.
fn plot(path: &Path, points: &[Point]) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(path, (760, 360)).into_drawing_area();
    area.fill(&WHITE)?;
    let panels = area.split_evenly((1, 2));
    let [left, right] = &panels[..] else {
        return Err("two panels were asked for".into());
    };
    let of = |what: fn(&Point) -> f64| {
        let points = points.iter().map(|point| (point.waiting as f64, what(point)));
        points.collect::<Vec<_>>()
    };
    panel(
        left,
        "Messages a group",
        0.5..2_000.0,
        &[("mean", BLUE, of(|point| point.group))],
    )?;
    panel(
        right,
        "Milliseconds from submit to answer",
        0.05..200.0,
        &[
            ("median", BLUE, of(|point| millis(point.median))),
            ("p99", RED, of(|point| millis(point.p99))),
        ],
    )?;
    area.present()?;
    Ok(())
}

/// A line's name and colour, and its points.
type Line<'a> = (&'a str, RGBColor, Vec<(f64, f64)>);

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn panel(
    area: &Area<'_>,
    title: &str,
    range: std::ops::Range<f64>,
    lines: &[Line<'_>],
) -> Result<(), Box<dyn Error>> {
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d((1.0..1_100.0).log_scale(), range.log_scale())?;
    let label = |number: &f64| format!("{number}");
    chart
        .configure_mesh()
        .x_desc("messages waiting at a time")
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .draw()?;
    for (name, color, points) in lines {
        let color = *color;
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}
