//! Times operators and compares them with what the machine can do: the roofline model (Williams, Waterman & Patterson 2009).
//!
//! No operator that computes `flop` and moves `bytes` is faster than `max(flop / peak FLOP/s, bytes / peak B/s)`. The peaks are
//! measured: a large matrix product, and STREAM's triad (McCalpin 1995) over arrays that no cache holds. An operator can do better
//! than that bound: Winograd's convolution needs fewer operations than the direct one that is counted, and what lies in a
//! cache moves faster.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};
use rayon::prelude::*;

/// At least this many rounds, and rounds until this much time has passed.
const MIN_ROUNDS: usize = 5;
const MIN_TIME: Duration = Duration::from_millis(400);
/// Side of the matrices whose product shows the machine's peak.
const PRODUCT: usize = 2048;
/// Floats in each of the triad's three arrays: 256 MiB.
const TRIAD: usize = 1 << 26;

/// What an operator cannot do with less of: the operations of the direct algorithm, and its inputs and outputs moved once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Additions and multiplications of `f32`, or 0 where they don't count.
    pub(crate) flop: f64,
    /// Bytes read and written.
    pub(crate) bytes: f64,
}

impl Cost {
    /// So many operations, and so many floats read or written.
    pub(crate) fn new(flop: usize, floats: usize) -> Self {
        Self {
            flop: flop as f64,
            bytes: 4.0 * floats as f64,
        }
    }
}

/// Runs once and says how many seconds that took.
pub(crate) type Timed<'a> = Box<dyn FnMut() -> f64 + 'a>;

/// All of `run` is timed.
pub(crate) fn timed<'a>(mut run: impl FnMut() + 'a) -> Timed<'a> {
    timed_after(|| (), move |()| run())
}

/// What `prepare` takes isn't timed, what `run` does with its result is.
pub(crate) fn timed_after<'a, T>(
    mut prepare: impl FnMut() -> T + 'a,
    mut run: impl FnMut(T) + 'a,
) -> Timed<'a> {
    Box::new(move || {
        let prepared = prepare();
        let start = Instant::now();
        run(prepared);
        start.elapsed().as_secs_f64()
    })
}

/// A table of operators, printed line by line.
pub(crate) struct Table {
    /// Parts of names, one of which a name must have; all names if there are none.
    filters: Vec<String>,
    /// Lines of JSON.
    json: bool,
    /// Without burn's operators.
    ours_alone: bool,
    /// The best time in place of the median: what a busy machine's neighbours disturb least.
    best: bool,
    peak_flops: f64,
    peak_bytes: f64,
}

impl Table {
    /// Reads the program's arguments, measures the machine and prints the header.
    ///
    /// # Panics
    /// If `--threads` isn't followed by a number.
    pub(crate) fn from_arguments() -> Self {
        ldm_nn::keep_freed_memory();
        let mut table = Self {
            filters: vec![],
            json: false,
            ours_alone: false,
            best: false,
            peak_flops: 0.0,
            peak_bytes: 0.0,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // What cargo passes to every bench.
                "--bench" => {}
                "--json" => table.json = true,
                "--ours" => table.ours_alone = true,
                "--best" => table.best = true,
                "--threads" => {
                    let threads = arguments.next().and_then(|threads| threads.parse().ok());
                    rayon::ThreadPoolBuilder::new()
                        .num_threads(threads.expect("`--threads` takes a number"))
                        .build_global()
                        .expect("nothing has used the thread pool yet");
                }
                flag if flag.starts_with('-') => {
                    panic!("`{flag}`: there are --json, --ours, --best and --threads N")
                }
                filter => table.filters.push(filter.into()),
            }
        }
        table.peak_flops = peak_flops();
        table.peak_bytes = peak_bytes();
        let (gflops, gbytes) = (table.peak_flops / 1e9, table.peak_bytes / 1e9);
        if table.json {
            println!("{{\"peak_gflops\": {gflops:.1}, \"peak_gbytes_per_s\": {gbytes:.2}}}");
        } else {
            println!("peaks: {gflops:.0} GFLOP/s, {gbytes:.1} GB/s");
            println!(
                "{:<46} {:>9} {:>9} {:>7} {:>8} {:>7} {:>8} {:>6}",
                "operator", "ours ms", "burn ms", "ratio", "GFLOP/s", "GB/s", "bound", "roof"
            );
        }
        table
    }

    /// Whether an operator of this name is to be timed; setting it up may cost something.
    pub(crate) fn has(&self, name: &str) -> bool {
        let wanted = |filter: &String| name.contains(filter.as_str());
        self.filters.is_empty() || self.filters.iter().any(wanted)
    }

    /// Times an operator, alternately with burn's counterpart if there is one, and prints a line.
    pub(crate) fn line(
        &self,
        name: &str,
        cost: Cost,
        mut ours: Timed<'_>,
        theirs: Option<Timed<'_>>,
    ) {
        if !self.has(name) {
            return;
        }
        let mut theirs = theirs.filter(|_| !self.ours_alone);
        let mut times = [vec![], vec![]];
        ours();
        if let Some(theirs) = &mut theirs {
            theirs();
        }
        let start = Instant::now();
        while times[0].len() < MIN_ROUNDS || start.elapsed() < MIN_TIME {
            times[0].push(ours());
            times[1].extend(theirs.as_mut().map(|theirs| theirs()));
        }
        let [ours, theirs] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            let chosen = if self.best { 0 } else { times.len() / 2 };
            times.get(chosen).copied()
        });
        self.print(name, cost, ours.expect("there were rounds"), theirs);
    }

    fn print(&self, name: &str, cost: Cost, ours: f64, theirs: Option<f64>) {
        let (compute, memory) = (cost.flop / self.peak_flops, cost.bytes / self.peak_bytes);
        let bound = if compute > memory {
            "compute"
        } else {
            "memory"
        };
        let roof = compute.max(memory) / ours;
        let (gflops, gbytes) = (cost.flop / ours / 1e9, cost.bytes / ours / 1e9);
        let milliseconds = ours * 1e3;
        if self.json {
            let burn = theirs.map_or("null".into(), |theirs| format!("{:.4}", theirs * 1e3));
            println!(
                "{{\"operator\": \"{name}\", \"ours_ms\": {milliseconds:.4}, \"burn_ms\": {burn}, \"gflops\": {gflops:.1}, \
                 \"gbytes_per_s\": {gbytes:.2}, \"bound\": \"{bound}\", \"of_roof\": {roof:.3}}}"
            );
            return;
        }
        let optional = |value: Option<f64>| value.map_or(String::new(), |x| format!("{x:.3}"));
        println!(
            "{name:<46} {milliseconds:>9.3} {:>9} {:>7} {:>8} {gbytes:>7.1} {bound:>8} {roof:>6.2}",
            optional(theirs.map(|theirs| theirs * 1e3)),
            optional(theirs.map(|theirs| ours / theirs)),
            optional((cost.flop > 0.0).then_some(gflops)),
        );
    }
}

/// FLOP/s of the product of two large matrices, the best of a few.
fn peak_flops() -> f64 {
    let random = || {
        let uniform = Distribution::Uniform(-1.0, 1.0);
        Tensor::<2>::random([PRODUCT, PRODUCT], uniform, &Device::flex())
    };
    let (a, b) = (random(), random());
    2.0 * (PRODUCT as f64).powi(3) / best(|| drop(a.clone().matmul(b.clone())))
}

/// Bytes per second of `a = b + 3 c`, the best of a few.
fn peak_bytes() -> f64 {
    let (mut a, b, c) = (vec![0f32; TRIAD], vec![1f32; TRIAD], vec![2f32; TRIAD]);
    const CHUNK: usize = 1 << 16;
    let seconds = best(|| {
        a.par_chunks_mut(CHUNK)
            .zip(b.par_chunks(CHUNK))
            .zip(c.par_chunks(CHUNK))
            .for_each(|((a, b), c)| {
                for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                    *a = b + 3.0 * c;
                }
            });
    });
    assert_eq!(a[TRIAD - 1], 7.0);
    3.0 * 4.0 * TRIAD as f64 / seconds
}

fn best(run: impl FnMut()) -> f64 {
    let mut run = timed(run);
    (0..8).map(|_| run()).fold(f64::INFINITY, f64::min)
}
