use super::*;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn replaces_a_file_and_leaves_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    write_file(&path, b"old").unwrap();
    write_file(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(names(dir.path()), ["a.txt"]);
}

#[test]
fn a_failed_write_keeps_the_old_file_and_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    write_file(&path, b"old").unwrap();
    let error = write_file_with(&path, |out| {
        out.write_all(b"half")?;
        Err(io::Error::from(io::ErrorKind::StorageFull))
    })
    .unwrap_err();
    assert_eq!(error.path, path);
    assert_eq!(error.source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["a.txt"]);
}

#[test]
fn a_missing_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nowhere/a.txt");
    let error = write_file(&path, b"x").unwrap_err();
    assert!(error.to_string().contains("nowhere/a.txt"), "{error}");
    assert!(PartialDir::create(&path).is_err());
}

/// `/dev/full` accepts the open and refuses every byte, as a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn bytes_that_only_fail_when_flushed_are_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let error = fill_and_sync(full, |out| {
        out.write_all(b"small enough to sit in the buffer")
    })
    .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn a_directory_appears_only_when_committed() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("model");
    let partial = PartialDir::create(&target).unwrap();
    fs::create_dir(partial.path().join("unet")).unwrap();
    fs::write(partial.path().join("unet/weights"), b"1").unwrap();
    assert!(!target.exists());
    partial.commit().unwrap();
    assert_eq!(fs::read(target.join("unet/weights")).unwrap(), b"1");
    assert_eq!(names(dir.path()), ["model"]);
}

#[test]
fn committing_replaces_the_former_directory_whole() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("model");
    for name in ["first", "second"] {
        let partial = PartialDir::create(&target).unwrap();
        fs::write(partial.path().join(name), name).unwrap();
        partial.commit().unwrap();
    }
    assert_eq!(names(&target), ["second"]);
    assert_eq!(names(dir.path()), ["model"]);
}

#[test]
fn a_dropped_directory_vanishes() {
    let dir = tempfile::tempdir().unwrap();
    let partial = PartialDir::create(&dir.path().join("model")).unwrap();
    fs::write(partial.path().join("half"), b"1").unwrap();
    drop(partial);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn removing_takes_the_whole_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("step-1");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("weights"), b"1").unwrap();
    remove_dir(&path).unwrap();
    assert!(names(dir.path()).is_empty());
    assert!(
        remove_dir(&path)
            .unwrap_err()
            .to_string()
            .contains("step-1")
    );
}

#[test]
fn leftovers_of_killed_processes_are_cleaned_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at(".step-1.partial-123")).unwrap();
    fs::write(at(".step-1.partial-123/weights"), b"half").unwrap();
    fs::write(at(".a.json.partial-7"), b"{").unwrap();
    fs::write(at(".keep.partial-x"), b"not ours").unwrap();
    fs::create_dir(at(".lost.replaced")).unwrap();
    fs::create_dir(at(".done.replaced")).unwrap();
    fs::create_dir(at("done")).unwrap();

    assert_eq!(clean_up(dir.path()).unwrap(), 4);
    assert_eq!(names(dir.path()), [".keep.partial-x", "done", "lost"]);
    assert_eq!(clean_up(&at("absent")).unwrap(), 0);
}
