//! Writing files and directories so that a reader, or a process killed at any instant, only ever meets the old
//! content or the new, never a half.
//!
//! The new content is built beside its final name as `.<name>.partial-<pid>`, synced to the disk, and renamed. A
//! leftover of a killed process is invisible to readers and is removed by [`clean_up`].

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

const PARTIAL: &str = ".partial-";
const REPLACED: &str = ".replaced";

/// A write that failed. The target still holds what it held before.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct WriteError {
    /// What was being done, as a verb: `write`, `create`, `rename`, ...
    pub action: &'static str,
    /// The file or directory in question: the final name, not the partial one.
    pub path: PathBuf,
    /// The operating system's reason, such as a full disk or a read-only folder.
    #[source]
    pub source: io::Error,
}

impl WriteError {
    /// What to do about it, where there is something to do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        write_help(&self.source)
    }

    fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self {
            action,
            path: path.to_path_buf(),
            source,
        }
    }
}

/// What to do about a write that failed, where there is something to do.
pub(crate) fn write_help(error: &io::Error) -> Option<String> {
    use io::ErrorKind::{
        AlreadyExists, FileTooLarge, IsADirectory, NotADirectory, NotFound, PermissionDenied,
        QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let help = match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            "free some space, or raise the limit, or choose another place with --out; a training run goes on with --resume"
        }
        NotFound | NotADirectory | PermissionDenied | ReadOnlyFilesystem => {
            "check that the folder exists and may be written to, or choose another place with --out"
        }
        AlreadyExists | IsADirectory => "choose another name with --out",
        _ => return None,
    };
    Some(help.into())
}

/// Replaces the file at `path` by `bytes`.
///
/// # Errors
/// [`WriteError`] with the path and the cause; the former file, if any, is untouched.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    write_file_with(path, |out| out.write_all(bytes))
}

/// Replaces the file at `path` by what `fill` writes into a buffered stream.
///
/// # Errors
/// [`WriteError`] with the path and the cause, also when `fill` fails; the former file, if any, is untouched.
pub fn write_file_with(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    let partial = partial_name(path).map_err(WriteError::at("write", path))?;
    let written = File::create(&partial)
        .and_then(|file| fill_and_sync(file, fill))
        .and_then(|()| fs::rename(&partial, path));
    if let Err(source) = written {
        // Nothing more can be done when even this fails; `clean_up` catches what stays behind.
        let _ = fs::remove_file(&partial);
        return Err(WriteError {
            action: "write",
            path: path.to_path_buf(),
            source,
        });
    }
    sync_dir(parent(path)).map_err(WriteError::at("sync the folder of", path))
}

fn fill_and_sync(
    file: File,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    fill(&mut out)?;
    out.into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()
}

/// A directory under construction: it appears under its final name, complete, on [`commit`](Self::commit), and
/// disappears when dropped before.
#[derive(Debug)]
pub struct PartialDir {
    target: PathBuf,
    partial: PathBuf,
    committed: bool,
}

impl PartialDir {
    /// Starts an empty directory that is to become `target`; its parent must exist.
    ///
    /// # Errors
    /// [`WriteError`] when the parent can't be written to.
    pub fn create(target: &Path) -> Result<Self, WriteError> {
        let create = || {
            let partial = partial_name(target)?;
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            fs::create_dir(&partial)?;
            Ok(partial)
        };
        let partial = create().map_err(WriteError::at("create", target))?;
        Ok(Self {
            target: target.to_path_buf(),
            partial,
            committed: false,
        })
    }

    /// Where to put the content meanwhile.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Syncs everything inside to the disk and gives the directory its final name, replacing what was there.
    ///
    /// A process killed while it replaces an existing directory leaves either the old or the new one for
    /// [`clean_up`] to put in place.
    ///
    /// # Errors
    /// [`WriteError`] with the final name; what was there stays.
    pub fn commit(mut self) -> Result<(), WriteError> {
        self.rename_into_place()
            .map_err(WriteError::at("write", &self.target))?;
        self.committed = true;
        sync_dir(parent(&self.target)).map_err(WriteError::at("sync the folder of", &self.target))
    }

    fn rename_into_place(&self) -> io::Result<()> {
        sync_tree(&self.partial)?;
        if !self.target.exists() {
            return fs::rename(&self.partial, &self.target);
        }
        // No portable call swaps two directories, so the old one steps aside first.
        let replaced = hidden_name(&self.target, REPLACED)?;
        if replaced.exists() {
            fs::remove_dir_all(&replaced)?;
        }
        fs::rename(&self.target, &replaced)?;
        if let Err(error) = fs::rename(&self.partial, &self.target) {
            fs::rename(&replaced, &self.target)?;
            return Err(error);
        }
        fs::remove_dir_all(&replaced)
    }
}

impl Drop for PartialDir {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: a drop has nobody to report to, and `clean_up` catches what stays behind.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// Finds out whether files can be created in `dir`, before work is done whose result is to go there.
///
/// # Errors
/// [`WriteError`] naming the folder.
pub fn check_writable(dir: &Path) -> Result<(), WriteError> {
    let probe = dir.join(format!(".probe{PARTIAL}{}", std::process::id()));
    File::create(&probe)
        .and_then(|_| fs::remove_file(&probe))
        .map_err(WriteError::at("write to", dir))
}

/// Finishes what killed processes left in `dir`: partial files and directories are removed, a directory that had
/// stepped aside for a successor that never came is put back. Returns how many entries were dealt with.
///
/// Call it when nothing is being written into `dir`, such as at the start of a run.
///
/// # Errors
/// [`WriteError`] when the directory can't be read or an entry can't be removed. A missing `dir` is no error.
pub fn clean_up(dir: &Path) -> Result<usize, WriteError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(WriteError::at("read", dir)(error)),
    };
    let mut cleaned = 0;
    for entry in entries {
        let path = entry.map_err(WriteError::at("read", dir))?.path();
        if let Some(original) = original_of_replaced(&path) {
            let outcome = if original.exists() {
                remove(&path)
            } else {
                fs::rename(&path, &original)
            };
            outcome.map_err(WriteError::at("clean up", &path))?;
        } else if is_partial(&path) {
            remove(&path).map_err(WriteError::at("clean up", &path))?;
        } else {
            continue;
        }
        cleaned += 1;
    }
    Ok(cleaned)
}

/// Creates the directory `path` and those above it, where missing.
///
/// # Errors
/// [`WriteError`] with the directory and the cause.
pub fn create_dir(path: &Path) -> Result<(), WriteError> {
    fs::create_dir_all(path).map_err(WriteError::at("create", path))
}

/// Removes a directory so that no part of it is ever seen under its name.
///
/// # Errors
/// [`WriteError`] with the directory and the cause.
pub fn remove_dir(path: &Path) -> Result<(), WriteError> {
    let doomed = partial_name(path).map_err(WriteError::at("remove", path))?;
    fs::rename(path, &doomed)
        .and_then(|()| fs::remove_dir_all(&doomed))
        .map_err(WriteError::at("remove", path))
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

fn is_partial(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let pid = name
        .strip_prefix('.')
        .and_then(|name| name.rsplit_once(PARTIAL))
        .map(|(_, pid)| pid);
    pid.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
}

fn original_of_replaced(path: &Path) -> Option<PathBuf> {
    let name = path
        .file_name()?
        .to_str()?
        .strip_prefix('.')?
        .strip_suffix(REPLACED)?;
    Some(path.with_file_name(name))
}

fn partial_name(path: &Path) -> io::Result<PathBuf> {
    hidden_name(path, &format!("{PARTIAL}{}", std::process::id()))
}

fn hidden_name(path: &Path, suffix: &str) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(suffix);
    Ok(path.with_file_name(hidden))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            // Windows flushes only through a handle that may write.
            File::options().write(true).open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

/// A rename is on the disk only once its directory is; Windows neither needs nor allows this.
fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(dir)?.sync_all()
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
