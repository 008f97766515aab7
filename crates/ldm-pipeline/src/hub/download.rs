//! A repository's files in the cache, and how they get there.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use sha2::{Digest, Sha256};

use super::{
    Hub, HubError, OnProgress, Progress,
    client::{Client, Metadata},
    is_name,
};

/// How often a download that breaks off is taken up again, as long as it gets further.
const ATTEMPTS: usize = 5;
const BUFFER: usize = 1 << 18;
/// Length of a commit's hash.
const COMMIT: usize = 40;

/// One repository at one revision: in the cache, and where it isn't, in the hub.
pub(super) struct Snapshot<'a> {
    hub: &'a Hub,
    client: Client<'a>,
    /// At the revision asked for.
    repo: Repo,
    cached: CacheRepo,
    /// What the revision stands for, once known: all files are of one commit.
    commit: Option<String>,
}

impl<'a> Snapshot<'a> {
    pub(super) fn new(hub: &'a Hub, repo: Repo) -> Self {
        let revision = repo.revision();
        let is_commit =
            revision.len() == COMMIT && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
        let reference = hub
            .cache
            .join(repo.folder_name())
            .join("refs")
            .join(revision);
        let commit = match is_commit {
            true => Some(revision.to_owned()),
            false => fs::read_to_string(reference)
                .ok()
                .map(|commit| commit.trim().to_owned()),
        };
        Self {
            hub,
            client: Client::new(hub),
            cached: Cache::new(hub.cache.clone()).repo(repo.clone()),
            commit: commit.filter(|commit| is_name(commit)),
            repo,
        }
    }

    pub(super) fn client(&self) -> &Client<'a> {
        &self.client
    }

    pub(super) fn repository(&self) -> String {
        self.repo.url()
    }

    /// The repository at the commit, where that is known.
    pub(super) fn repo(&self) -> Repo {
        match &self.commit {
            Some(commit) => Repo::with_revision(self.repo.url(), RepoType::Model, commit.clone()),
            None => self.repo.clone(),
        }
    }

    /// The folder with the files; it is there once a file is.
    pub(super) fn dir(&self) -> Option<PathBuf> {
        Some(self.cached.pointer_path(self.commit.as_ref()?))
    }

    /// The file's path if it is in the cache.
    pub(super) fn cached(&self, file: &str) -> Option<PathBuf> {
        self.dir()
            .map(|dir| dir.join(file))
            .filter(|path| path.is_file())
    }

    /// The file's path, downloaded if need be.
    pub(super) fn file(
        &mut self,
        file: &str,
        on_progress: &mut OnProgress,
    ) -> Result<PathBuf, HubError> {
        if let Some(path) = self.cached(file) {
            return Ok(path);
        }
        if self.hub.offline {
            return Err(HubError::Offline {
                repository: self.repository(),
                file: file.to_owned(),
            });
        }
        let metadata = self.client.metadata(&self.repo(), file)?;
        let blob = self.cached.blob_path(&metadata.etag);
        self.download(file, &metadata, &blob, on_progress)?;
        let path = self.cached.pointer_path(&metadata.commit).join(file);
        place(&blob, &path)?;
        if self.commit.is_none() {
            // Written after the first file, so that a revision in the cache is never empty.
            self.cached
                .create_ref(&metadata.commit)
                .map_err(HubError::cache(&self.hub.cache))?;
            self.commit = Some(metadata.commit);
        }
        Ok(path)
    }

    /// As [`file`](Self::file), but `None` where the repository doesn't have it, which the cache remembers.
    pub(super) fn optional(
        &mut self,
        file: &str,
        on_progress: &mut OnProgress,
    ) -> Result<Option<PathBuf>, HubError> {
        if self.absence(file).is_some_and(|marker| marker.is_file()) {
            return Ok(None);
        }
        match self.file(file, on_progress) {
            Ok(path) => Ok(Some(path)),
            Err(HubError::Offline { .. }) if self.commit.is_some() => Ok(None),
            Err(HubError::NoFile { .. }) if self.commit.is_some() => {
                if let Some(marker) = self.absence(file) {
                    create_parent(&marker)?;
                    File::create(&marker).map_err(HubError::cache(&marker))?;
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Where the cache keeps that the commit lacks a file.
    fn absence(&self, file: &str) -> Option<PathBuf> {
        let folder = self.hub.cache.join(self.repo.folder_name());
        Some(
            folder
                .join(".no_exist")
                .join(self.commit.as_ref()?)
                .join(file),
        )
    }

    /// Makes `blob` the file's complete content, going on where an earlier download ended.
    fn download(
        &self,
        file: &str,
        metadata: &Metadata,
        blob: &Path,
        on_progress: &mut OnProgress,
    ) -> Result<(), HubError> {
        if blob.is_file() {
            return Ok(());
        }
        create_parent(blob)?;
        let partial = blob.with_file_name(format!("{}.incomplete", metadata.etag));
        let failed = || HubError::cache(&partial);
        let mut out = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&partial)
            .map_err(failed())?;
        out.lock().map_err(failed())?;
        if blob.is_file() {
            // Another process has brought it while this one waited, and has renamed the locked file; or this one made a new one.
            if fs::metadata(&partial).is_ok_and(|metadata| metadata.len() == 0) {
                fs::remove_file(&partial).map_err(failed())?;
            }
            return Ok(());
        }
        self.fill(file, metadata, &mut out, on_progress)
            .map_err(|error| error.unwrap_or_else(failed()))?;
        if let Err(found) = verify(&mut out, &metadata.etag).map_err(failed())? {
            drop(out);
            fs::remove_file(&partial).map_err(failed())?;
            return Err(HubError::Damaged {
                repository: self.repository(),
                file: file.to_owned(),
                found,
                expected: metadata.etag.clone(),
            });
        }
        out.sync_all().map_err(failed())?;
        fs::rename(&partial, blob).map_err(HubError::cache(blob))
    }

    /// Appends to `out` what it lacks of the file.
    fn fill(
        &self,
        file: &str,
        metadata: &Metadata,
        out: &mut File,
        on_progress: &mut OnProgress,
    ) -> Result<(), Failure> {
        let repo = Repo::with_revision(self.repo.url(), RepoType::Model, metadata.commit.clone());
        let mut received = out.metadata().map_err(Failure::Disk)?.len();
        if received > metadata.size {
            received = restart(out)?;
        }
        for _ in 0..ATTEMPTS {
            if received == metadata.size {
                return Ok(());
            }
            let before = received;
            let mut content = self
                .client
                .content(&repo, file, received, None)
                .map_err(Failure::Hub)?;
            if content.start != received {
                received = restart(out)?;
            }
            let mut buffer = vec![0; BUFFER];
            loop {
                on_progress(Progress {
                    file,
                    received,
                    total: metadata.size,
                });
                // One byte more than there should be shows that there are more.
                let wanted = (metadata.size - received + 1).min(BUFFER as u64) as usize;
                // An error while reading is a connection that broke: what arrived stays.
                let Ok(count @ 1..) = content.body.read(&mut buffer[..wanted]) else {
                    break;
                };
                if received + count as u64 > metadata.size {
                    restart(out)?;
                    return Err(Failure::Hub(HubError::Malformed {
                        repository: self.repository(),
                        file: file.to_owned(),
                        problem: format!("it is longer than the {} bytes announced", metadata.size),
                    }));
                }
                out.write_all(&buffer[..count]).map_err(Failure::Disk)?;
                received += count as u64;
            }
            if received <= before {
                break;
            }
        }
        match received == metadata.size {
            true => Ok(()),
            false => Err(Failure::Hub(HubError::Truncated {
                repository: self.repository(),
                file: file.to_owned(),
                received,
                expected: metadata.size,
            })),
        }
    }
}

/// What can go wrong while a partial file is filled, whose path only the caller knows.
enum Failure {
    Hub(HubError),
    Disk(io::Error),
}

impl Failure {
    fn unwrap_or_else(self, on_disk: impl FnOnce(io::Error) -> HubError) -> HubError {
        match self {
            Self::Hub(error) => error,
            Self::Disk(error) => on_disk(error),
        }
    }
}

/// Empties a file that is written from its beginning again.
fn restart(out: &File) -> Result<u64, Failure> {
    out.set_len(0).map_err(Failure::Disk)?;
    Ok(0)
}

/// Compares a file with an etag that is a SHA-256, as those of large files are; the error is the checksum found.
fn verify(file: &mut File, etag: &str) -> io::Result<Result<(), String>> {
    let is_sha256 = etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_sha256 {
        return Ok(Ok(()));
    }
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha256::new();
    io::copy(file, &mut hasher)?;
    let found: String = (hasher.finalize().iter())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(match found.eq_ignore_ascii_case(etag) {
        true => Ok(()),
        false => Err(found),
    })
}

/// Makes `path` the file `blob`, by a relative link where the system has them.
fn place(blob: &Path, path: &Path) -> Result<(), HubError> {
    if path.is_file() {
        return Ok(());
    }
    create_parent(path)?;
    let failed = || HubError::cache(path);
    // A link whose target has been removed would be in the way.
    if path.symlink_metadata().is_ok() {
        fs::remove_file(path).map_err(failed())?;
    }
    link(blob, path).map_err(failed())
}

#[cfg(unix)]
fn link(blob: &Path, path: &Path) -> io::Result<()> {
    // Both are below the repository's folder: blobs/X and snapshots/COMMIT/a/b.
    let folder = blob.parent().and_then(Path::parent);
    let below = folder.and_then(|folder| path.strip_prefix(folder).ok());
    let (Some(below), Some(name)) = (below, blob.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut target: PathBuf = below.components().skip(1).map(|_| "..").collect();
    target.push("blobs");
    target.push(name);
    std::os::unix::fs::symlink(target, path)
}

#[cfg(not(unix))]
fn link(blob: &Path, path: &Path) -> io::Result<()> {
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(|_| ()))
}

fn create_parent(path: &Path) -> Result<(), HubError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    fs::create_dir_all(parent).map_err(HubError::cache(parent))
}

impl Hub {
    /// The local path of a repository's file, downloaded if it isn't in the cache.
    pub(super) fn file(
        &self,
        repo: Repo,
        file: &str,
        on_progress: &mut OnProgress,
    ) -> Result<PathBuf, HubError> {
        Snapshot::new(self, repo).file(file, on_progress)
    }
}
