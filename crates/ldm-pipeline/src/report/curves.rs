//! `metrics.jsonl` as charts: columns of figures, thinned so that no spike is lost, grouped by what they measure.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::Path,
    time::SystemTime,
};

use super::figures::{self, Figure};
use crate::{error::Error, metrics::parse_line};

/// Points of a line on the page, at most; a few more where values are not finite.
pub(super) const MAX_POINTS: usize = 2000;

/// The figures of a stage, each with the steps that have it.
#[derive(Default)]
pub(super) struct Curves {
    /// `(step, value)` by rising step, under the figure's name; NaN where it was not finite.
    pub(super) columns: BTreeMap<String, Vec<(u64, f64)>>,
    /// The last step recorded; 0 if there is none.
    pub(super) last_step: u64,
    /// Training time until then, in seconds.
    pub(super) seconds: f64,
    /// Lines that could not be understood, a torn last one aside.
    pub(super) damaged: usize,
    /// When the file last changed.
    pub(super) changed: Option<SystemTime>,
}

/// Figures that are drawn over each other.
pub(super) struct Chart {
    pub(super) figure: Figure,
    pub(super) lines: Vec<Line>,
}

/// One figure of a chart.
pub(super) struct Line {
    /// Its name in `metrics.jsonl`.
    pub(super) name: String,
    /// `(step, value)` by rising step: all, or lowest and highest of each stretch of equal length. `None` is a value that is not finite.
    pub(super) points: Vec<(u64, Option<f64>)>,
    /// The mean of each stretch at its middle, if `points` are not all.
    pub(super) means: Vec<(u64, f64)>,
    /// Values recorded.
    pub(super) recorded: usize,
    /// Values recorded that are not finite.
    pub(super) not_finite: usize,
}

/// Reads a `metrics.jsonl`, of which another process may be writing the last line. A missing file has no figures.
pub(super) fn read(path: &Path) -> Result<Curves, Error> {
    let unreadable = |source| Error::Read {
        path: path.into(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Curves::default()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut curves = Curves {
        changed: file.metadata().and_then(|meta| meta.modified()).ok(),
        ..Curves::default()
    };
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut line = Vec::new();
    loop {
        line.clear();
        file.read_until(b'\n', &mut line).map_err(unreadable)?;
        if !line.ends_with(b"\n") {
            return Ok(curves);
        }
        match parse_line(&line) {
            Some(record) => curves.push(record.step, record.seconds, record.values),
            None => curves.damaged += 1,
        }
    }
}

impl Curves {
    fn push(&mut self, step: u64, seconds: f64, values: BTreeMap<String, f64>) {
        if step <= self.last_step {
            // The run went back; what it repeats counts.
            for column in self.columns.values_mut() {
                column.truncate(column.partition_point(|(earlier, _)| *earlier < step));
            }
        }
        (self.last_step, self.seconds) = (step, seconds);
        for (name, value) in values {
            // A name is allocated once, not at each step.
            match self.columns.get_mut(&name) {
                Some(column) => column.push((step, value)),
                None => drop(self.columns.insert(name, vec![(step, value)])),
            }
        }
    }

    /// All figures as charts, in the order of the page.
    pub(super) fn charts(&self) -> Vec<Chart> {
        let mut charts: BTreeMap<(usize, &str), Chart> = BTreeMap::new();
        for (name, column) in &self.columns {
            let family = figures::family(name);
            let figure = figures::of(family);
            charts
                .entry((figure.rank, family))
                .or_insert_with(|| Chart {
                    figure,
                    lines: Vec::new(),
                })
                .lines
                .push(Line::new(name, column));
        }
        let mut charts: Vec<Chart> = charts.into_values().collect();
        for chart in &mut charts {
            chart.lines.sort_by_cached_key(|line| natural(&line.name));
        }
        charts
    }
}

impl Line {
    pub(super) fn new(name: &str, column: &[(u64, f64)]) -> Self {
        let (points, means) = thin(column);
        Self {
            name: name.into(),
            points,
            means,
            recorded: column.len(),
            not_finite: (column.iter())
                .filter(|(_, value)| !value.is_finite())
                .count(),
        }
    }
}

type Points = Vec<(u64, Option<f64>)>;

/// Of each stretch the lowest and the highest value and the first that is not finite, and the means; all values if they are few.
fn thin(column: &[(u64, f64)]) -> (Points, Vec<(u64, f64)>) {
    let finite = |value: f64| Some(value).filter(|value| value.is_finite());
    if column.len() <= MAX_POINTS {
        let all = column.iter().map(|&(step, value)| (step, finite(value)));
        return (all.collect(), Vec::new());
    }
    // Two points each, and the first and last of all.
    let stretch = column.len().div_ceil(MAX_POINTS / 2 - 1);
    let (mut points, mut means) = (Vec::new(), Vec::new());
    let ends = [0, column.len() - 1];
    for start in (0..column.len()).step_by(stretch) {
        let end = column.len().min(start + stretch);
        let finite = || (start..end).filter(|&index| column[index].1.is_finite());
        let by_value = |a: &usize, b: &usize| column[*a].1.total_cmp(&column[*b].1);
        let mut kept: Vec<usize> = [
            finite().min_by(by_value),
            finite().max_by(by_value),
            (start..end).find(|&index| !column[index].1.is_finite()),
        ]
        .into_iter()
        .flatten()
        .chain(
            ends.into_iter()
                .filter(|end_of_all| (start..end).contains(end_of_all)),
        )
        .collect();
        kept.sort_unstable();
        kept.dedup();
        points.extend(kept.into_iter().map(|index| {
            let (step, value) = column[index];
            (step, Some(value).filter(|value| value.is_finite()))
        }));
        let count = finite().count();
        if count > 0 {
            let sum: f64 = finite().map(|index| column[index].1).sum();
            means.push((
                column[usize::midpoint(start, end - 1)].0,
                sum / count as f64,
            ));
        }
    }
    (points, means)
}

/// Key that orders `kl/2` before `kl/10`.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, number) = rest.split_at(digits);
        let after = number
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(number.len());
        parts.push((text.to_owned(), number[..after].parse().unwrap_or(0)));
        rest = &number[after..];
    }
    parts
}
