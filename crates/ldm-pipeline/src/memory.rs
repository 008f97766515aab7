//! Memory of this machine and of its processes.

use std::fs;

pub use ldm_nn::keep_freed_memory;

/// Resident memory of this process, in bytes. Known on Linux only.
pub fn resident_memory() -> Option<u64> {
    field("/proc/self/status", "VmRSS:")
}

/// The most resident memory that a process has had, in bytes: its own if `pid` is `None`. Known on Linux only.
pub fn peak_memory(pid: Option<u32>) -> Option<u64> {
    let process = pid.map_or("self".into(), |pid| pid.to_string());
    field(&format!("/proc/{process}/status"), "VmHWM:")
}

/// What programs may still take without the system having to move others to disk, in bytes, with the limit of the control group that this
/// process is in. Known on Linux only.
pub fn available_memory() -> Option<u64> {
    let machine = field("/proc/meminfo", "MemAvailable:")?;
    let number = |file: &str| -> Option<u64> {
        let path = format!("/sys/fs/cgroup/{file}");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let group = number("memory.max").zip(number("memory.current"));
    let group = group.map(|(most, used)| most.saturating_sub(used));
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// A number of KiB behind a name at the beginning of a line, in bytes.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn both_figures_have_a_block_that_is_in_use() {
        let block = vec![1u8; 64 << 20];
        let mib = |bytes: Option<u64>| bytes.unwrap() as f64 / (1 << 20) as f64;
        let (now, peak) = (mib(resident_memory()), mib(peak_memory(None)));
        assert_eq!(block[block.len() / 2], 1);
        assert!(now >= 64.0 && peak >= 64.0, "{now} {peak}");
    }

    #[test]
    fn a_process_has_a_peak() {
        let before = peak_memory(None).unwrap();
        let block = vec![1_u8; 64 << 20];
        let after = peak_memory(Some(std::process::id())).unwrap();
        assert!(
            after >= before && after > block.len() as u64,
            "{before} {after}"
        );
        assert!(available_memory().unwrap() > 0);
        assert_eq!(peak_memory(Some(u32::MAX)), None);
    }
}
