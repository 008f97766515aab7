//! `hardware.json`: the machine that a run was trained on, for whoever reads its report later.

use std::{fs, io, path::Path, thread};

use serde::{Deserialize, Serialize};

use crate::{
    atomic::{self, WriteError},
    error::Error,
};

/// Name of the file in a run directory.
pub const FILE: &str = "hardware.json";

/// A machine, and what of this program ran on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Version of this program.
    pub ldm_version: String,
    /// The device as it was asked for by `--device`.
    pub device: String,
    /// Names of the devices that the build has.
    pub built_with: Vec<String>,
    /// Instruction set of the CPU kernels, by its name in `LDM_KERNELS`.
    pub kernels: String,
    /// Model of the CPU; `None` where the system doesn't tell.
    #[serde(default)]
    pub cpu: Option<String>,
    /// Threads that this process may run at once.
    pub cores: usize,
    /// Main memory in MiB; `None` where the system doesn't tell.
    #[serde(default)]
    pub memory_mib: Option<u64>,
    /// Operating system, with its version where it tells.
    pub os: String,
    /// Instruction set of the program, such as `x86_64`.
    pub architecture: String,
}

impl Hardware {
    /// This machine, computing on the device called `device`, by a build that has `built_with`.
    #[must_use]
    pub fn detect(device: String, built_with: Vec<String>) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            ldm_version: env!("CARGO_PKG_VERSION").into(),
            device,
            built_with,
            kernels: kernels().into(),
            cpu: value_of(&read("/proc/cpuinfo"), "model name", ':'),
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_mib(&read("/proc/meminfo")),
            os: os(
                &read("/etc/os-release"),
                read("/proc/sys/kernel/osrelease").trim(),
            ),
            architecture: std::env::consts::ARCH.into(),
        }
    }

    /// Adds the machine to those in `path` unless it is the last of them: a run that moved lists where it was.
    ///
    /// # Errors
    /// [`WriteError`] if the file can't be written. One that can't be read is made anew.
    pub fn record(&self, path: &Path) -> Result<(), WriteError> {
        let mut machines = read(path).ok().flatten().unwrap_or_default();
        if machines.last() == Some(self) {
            return Ok(());
        }
        machines.push(self.clone());
        atomic::write_file_with(path, |out| {
            serde_json::to_writer_pretty(&mut *out, &machines)?;
            out.write_all(b"\n")
        })
    }
}

/// The machines of a run in the order of their use; `None` without the file.
///
/// # Errors
/// If there is a file that can't be read or isn't what [`Hardware::record`] writes.
pub fn read(path: &Path) -> Result<Option<Vec<Hardware>>, Error> {
    match fs::read(path) {
        Ok(json) => serde_json::from_slice(&json)
            .map(Some)
            .map_err(|error| Error::Malformed {
                path: path.into(),
                problem: error.to_string(),
            }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read {
            path: path.into(),
            source,
        }),
    }
}

/// Instruction set of the CPU kernels on this machine, by its name in `LDM_KERNELS`.
#[must_use]
pub fn kernels() -> &'static str {
    ldm_nn::ops::kernels()
}

fn memory_mib(meminfo: &str) -> Option<u64> {
    let total = value_of(meminfo, "MemTotal", ':')?;
    let kib: u64 = total.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// `Debian GNU/Linux 12 (bookworm), kernel 6.1.0`, or what the compiler calls the system.
fn os(os_release: &str, kernel: &str) -> String {
    let name = value_of(os_release, "PRETTY_NAME", '=')
        .unwrap_or_else(|| std::env::consts::OS.into())
        .trim_matches('"')
        .to_owned();
    match kernel {
        "" => name,
        kernel => format!("{name}, kernel {kernel}"),
    }
}

/// The first value of `key` in a text of lines `key SEPARATOR value`.
fn value_of(text: &str, key: &str, separator: char) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once(separator))
        .find(|(name, value)| name.trim() == key && !value.trim().is_empty())
        .map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_understood() {
        let cpuinfo =
            "processor\t: 0\nmodel name\t: A CPU: fast\nprocessor\t: 1\nmodel name\t: B\n";
        assert_eq!(
            value_of(cpuinfo, "model name", ':').as_deref(),
            Some("A CPU: fast")
        );
        assert_eq!(
            memory_mib("MemTotal:       16384000 kB\nMemFree: 1 kB\n"),
            Some(16_000)
        );
        assert_eq!(memory_mib("MemTotal: lots\n"), None);
        assert_eq!(
            os("NAME=x\nPRETTY_NAME=\"Debian 12\"\n", "6.1"),
            "Debian 12, kernel 6.1"
        );
        assert_eq!(os("", ""), std::env::consts::OS);
    }

    #[test]
    fn each_machine_is_listed_once_in_the_order_of_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert_eq!(read(&path).unwrap(), None);
        let here = Hardware::detect("flex".into(), vec!["flex".into()]);
        let there = Hardware {
            device: "cuda:1".into(),
            ..here.clone()
        };
        for machine in [&here, &here, &there, &there] {
            machine.record(&path).unwrap();
        }
        assert_eq!(
            read(&path).unwrap(),
            Some(vec![here.clone(), there.clone()])
        );

        fs::write(&path, "[{\"cores\": ").unwrap();
        assert!(matches!(read(&path), Err(Error::Malformed { .. })));
        there.record(&path).unwrap();
        assert_eq!(read(&path).unwrap(), Some(vec![there]));
    }
}
