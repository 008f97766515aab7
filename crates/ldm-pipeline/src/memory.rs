//! The memory of this process.

/// Memory in use, in MiB; `None` where the system doesn't say.
pub fn resident_mib() -> Option<f64> {
    status_mib("VmRSS:")
}

/// The most that was ever in use, in MiB; `None` where the system doesn't say.
pub fn peak_mib() -> Option<f64> {
    status_mib("VmHWM:")
}

fn status_mib(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn both_figures_have_a_block_that_is_in_use() {
        let block = vec![1u8; 64 << 20];
        let (now, peak) = (resident_mib().unwrap(), peak_mib().unwrap());
        assert_eq!(block[block.len() / 2], 1);
        assert!(now >= 64.0 && peak >= 64.0, "{now} {peak}");
    }
}
