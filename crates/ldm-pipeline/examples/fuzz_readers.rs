//! Feeds damaged files to the readers of foreign files until the time is over: `fuzz_readers SECONDS [SEED]`.
//!
//! The first file that a reader panics at, or allocates more for than twice its size and a constant, is kept in the
//! working directory, and the program ends with status 1.

#[path = "../tests/fuzz/mod.rs"]
mod fuzz;

use std::process::ExitCode;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: fuzz::Counting = fuzz::Counting;

const REPORT_EVERY: Duration = Duration::from_secs(60);
const BATCH: usize = 500;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse());
    let (Some(Ok(seconds)), seed) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: fuzz_readers SECONDS [SEED]");
        return ExitCode::from(2);
    };
    let seed = seed.and_then(Result::ok).unwrap_or(1).max(1);
    let dir = match tempfile::tempdir() {
        Ok(dir) => dir,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let targets = fuzz::targets(dir.path());
    let mut random = fuzz::Random(seed);
    let (start, mut reported, mut files) = (Instant::now(), Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(seconds) {
        for target in &targets {
            for _ in 0..BATCH {
                let content = fuzz::mutate(&mut random, &target.seeds);
                if let Err(problem) = target.check(dir.path(), &content) {
                    let kept = "fuzz-failure.bin";
                    let written = std::fs::write(kept, &content);
                    eprintln!("error: {problem}; the file is kept as {kept} ({written:?})");
                    return ExitCode::FAILURE;
                }
                files += 1;
            }
        }
        if reported.elapsed() >= REPORT_EVERY {
            println!("{files} files in {} s", start.elapsed().as_secs());
            reported = Instant::now();
        }
    }
    let names: Vec<&str> = targets.iter().map(|target| target.name).collect();
    println!(
        "{files} files of {} in {} s, seed {seed}: no panic, memory within bounds",
        names.join(", "),
        start.elapsed().as_secs()
    );
    ExitCode::SUCCESS
}
