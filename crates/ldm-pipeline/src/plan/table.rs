//! A plan for people.

use std::fmt::{self, Display, Formatter};

use super::{Plan, StagePlan};
use crate::info::grouped;

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for stage in &self.stages {
            writeln!(f, "{stage}")?;
        }
        write!(f, "all: {}", duration(self.seconds))?;
        if let Some(peak) = self.peak_memory {
            write!(f, ", {} of memory", bytes(peak))?;
            if let Some(memory) = self.memory {
                write!(f, " of {}", bytes(memory))?;
            }
        }
        writeln!(f, ", {} of disk", bytes(self.disk))?;
        writeln!(f, "\nassumed:")?;
        for assumption in &self.assumptions {
            writeln!(f, "  - {assumption}")?;
        }
        Ok(())
    }
}

impl Display for StagePlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} steps of {} x {} images",
            self.stage, self.steps, self.accumulation, self.batch_size
        )?;
        row(f, "parameters", grouped(self.parameters), "")?;
        let kinds = (self.adversarial).map_or(String::new(), |kinds| {
            format!(
                ", {} before disc_start and {} after",
                duration(kinds.before),
                duration(kinds.after)
            )
        });
        let speed = format!("{:.3} images/s{kinds}", self.images_per_second);
        row(f, "step", duration(self.step_seconds), &speed)?;
        let time = &self.time;
        let parts = [
            ("set-up", time.setup),
            ("encoding", time.encoding),
            ("steps", time.steps),
            ("sheets", time.previews),
            ("checkpoints", time.checkpoints),
        ];
        row(f, "time", duration(time.total), &list(&parts, duration))?;
        if let Some(peak) = self.peak_memory {
            let verdict = match self.fits {
                Some(true) => "fits",
                Some(false) => "DOES NOT FIT",
                None => "",
            };
            row(f, "peak memory", bytes(peak), verdict)?;
        }
        if let Some(memory) = &self.memory {
            let parts = [
                ("weights", memory.weights),
                ("gradients", memory.gradients),
                ("optimiser", memory.optimizer),
                ("averages", memory.ema),
                ("per image of a micro-batch", memory.per_image),
                ("data", memory.data),
                ("latents, mapped", memory.latents),
                ("other", memory.other),
            ];
            row(f, "", String::new(), &list(&parts, bytes))?;
        }
        let disk = &self.disk;
        let parts = [
            ("checkpoints", disk.checkpoints),
            ("sheets", disk.sheets),
            ("logs", disk.logs),
            ("latents", disk.latents),
            ("model", disk.model),
        ];
        row(f, "disk", bytes(disk.total), &list(&parts, bytes))?;
        if let Some(proposal) = &self.proposal {
            let what = format!("{} x {} images", proposal.accumulation, proposal.batch_size);
            if [proposal.accumulation, proposal.batch_size] == [self.accumulation, self.batch_size]
            {
                row(f, "proposal", what, "as configured: the largest that fits")?;
            } else {
                let figures = format!(
                    "{} a step, {}",
                    duration(proposal.step_seconds),
                    bytes(proposal.peak_memory)
                );
                row(f, "proposal", what, &figures)?;
                row(f, "", String::new(), &proposal.options)?;
            }
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}

fn row(f: &mut Formatter<'_>, name: &str, value: String, details: &str) -> fmt::Result {
    let line = format!("  {name:12} {value:>16}   {details}");
    writeln!(f, "{}", line.trim_end())
}

/// Parts with a share, largest first as given.
fn list<T: Copy + PartialEq + Default>(parts: &[(&str, T)], show: impl Fn(T) -> String) -> String {
    let parts = parts.iter().filter(|(_, value)| *value != T::default());
    let parts: Vec<String> = parts
        .map(|(name, value)| format!("{name} {}", show(*value)))
        .collect();
    parts.join(", ")
}

/// Bytes in the unit that leaves one to four digits before the point.
pub(super) fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value >= 100.0 => format!("{value:.0} {}", units[unit]),
        _ => format!("{value:.2} {}", units[unit]),
    }
}

/// Seconds as milliseconds, seconds, minutes, hours or days.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 1.0 => format!("{:.1} ms", 1000.0 * seconds),
        _ if seconds < 100.0 => format!("{seconds:.2} s"),
        0..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_readable() {
        let sizes = [0, 1023, 1536, 445 << 20, (3 << 30) / 2].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.50 KiB", "445 MiB", "1.50 GiB"]);
        let times = [0.0123, 1.5, 99.0, 185.0, 7500.0, 200_000.0].map(duration);
        let expected = [
            "12.3 ms",
            "1.50 s",
            "99.00 s",
            "3 min 5 s",
            "2 h 5 min",
            "2 d 7 h",
        ];
        assert_eq!(times, expected);
    }
}
