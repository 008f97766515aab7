//! Large data sets with damage in them, data that vanish, and shards beside folders, through the [`Loader`].

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use image::{ImageFormat, Rgb, RgbImage};

use super::{
    Batch, DataConfig, DataError, Dataset, ImageDataset, ImageFolder, Loader, LoaderConfig,
    Preprocess, Size,
    test_images::{photo, write_greys, write_tar},
};

const SEED: u64 = 5;

fn dataset(path: &Path, cache_bytes: usize) -> Arc<dyn Dataset> {
    let preprocess = Preprocess {
        resolution: 8,
        flip: 0.5,
        ..Default::default()
    };
    let folder = ImageFolder::scan(path).unwrap();
    Arc::new(ImageDataset::new(folder, preprocess, SEED, cache_bytes))
}

fn loader(path: &Path, batch: usize, workers: usize, start_batch: u64) -> Loader {
    let config = LoaderConfig {
        batch,
        batches_per_step: 1,
        seed: SEED,
        workers,
        start_batch,
        strict: false,
    };
    Loader::start(dataset(path, 0), config).unwrap()
}

fn take(loader: &mut Loader, count: usize) -> Vec<Batch> {
    loader.take(count).map(Result::unwrap).collect()
}

fn png(grey: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    // Not of one colour, so that half a file is half an image.
    RgbImage::from_fn(8, 8, |x, y| Rgb([grey, (x * 30) as u8, (y * 30) as u8]))
        .write_to(&mut bytes, ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

/// Damages a PNG in one of four ways.
fn damaged(mut bytes: Vec<u8>, way: usize) -> Vec<u8> {
    match way % 4 {
        0 => bytes.truncate(bytes.len() * 2 / 3),
        1 => bytes.clear(),
        2 => bytes = b"<html>404 not found</html>".to_vec(),
        _ => {
            // The checksum of the pixels' chunk, before the end's chunk of 12 bytes.
            let checksum = bytes.len() - 12 - 4;
            bytes[checksum] ^= 0x40;
        }
    }
    bytes
}

#[test]
fn ten_thousand_images_of_which_a_hundred_are_damaged() {
    const IMAGES: usize = 10_000;
    const BATCH: usize = 64;
    /// Somewhat more than an epoch.
    const BATCHES: usize = IMAGES / BATCH + 14;
    let dir = tempfile::tempdir().unwrap();
    let whole: Vec<Vec<u8>> = (0..=255).map(png).collect();
    for number in 0..IMAGES {
        let mut bytes = whole[number % 256].clone();
        if number % 100 == 37 {
            bytes = damaged(bytes, number / 100);
        }
        fs::write(dir.path().join(format!("{number:05}.png")), bytes).unwrap();
    }

    let mut first = loader(dir.path(), BATCH, 2, 0);
    let batches = take(&mut first, BATCHES);
    let skipped = first.take_skipped();
    let named: BTreeSet<usize> = skipped.iter().map(|skipped| skipped.index).collect();
    assert_eq!(skipped.len(), 100);
    assert!(named.iter().all(|index| index % 100 == 37) && named.len() == 100);
    for skipped in &skipped {
        let text = skipped.error.to_string();
        assert!(
            text.contains(&format!("{:05}.png", skipped.index)),
            "{text}"
        );
    }
    assert_eq!(first.skipped_count(), 100);
    for batch in &batches {
        assert_eq!(batch.shape[0], BATCH);
        assert!(batch.indices.iter().all(|index| index % 100 != 37));
    }

    // The same replacements whatever the number of threads and wherever it begins.
    let mut resumed = loader(dir.path(), BATCH, 3, 90);
    assert!(take(&mut resumed, BATCHES - 90) == batches[90..]);
}

#[test]
fn a_bucket_of_damaged_images_leaves_its_turns_to_others() {
    let dir = tempfile::tempdir().unwrap();
    write_greys(dir.path(), 6);
    let wide = |name: &str, harm: bool| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        photo(40, 20)
            .write_to(&mut bytes, ImageFormat::Png)
            .unwrap();
        let mut bytes = bytes.into_inner();
        if harm {
            bytes.truncate(bytes.len() / 2);
        }
        fs::write(dir.path().join(name), bytes).unwrap();
    };
    wide("wide-1.png", true);
    wide("wide-2.png", true);
    // Without a header it can't be known to be wide.
    fs::write(dir.path().join("wide-3.png"), "no image").unwrap();
    let dataset = || -> Arc<dyn Dataset> {
        let folder = ImageFolder::scan(dir.path()).unwrap();
        let set = ImageDataset::new(folder, Preprocess::default(), SEED, 0);
        Arc::new(set.with_buckets([[8, 8], [16, 8]].map(Size::from).to_vec()))
    };
    let groups = dataset().groups();
    assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [7, 2]);
    let config = LoaderConfig {
        batch: 2,
        batches_per_step: 2,
        seed: SEED,
        workers: 2,
        start_batch: 0,
        strict: false,
    };
    let mut loader = Loader::start(dataset(), config.clone()).unwrap();
    let batches = take(&mut loader, 20);
    assert!(batches.iter().all(|batch| batch.shape == [2, 3, 8, 8]));
    let named: BTreeSet<String> = (loader.take_skipped().iter())
        .map(|skipped| skipped.error.to_string())
        .collect();
    assert_eq!(named.len(), 3, "{named:?}");
    for number in 1..4 {
        let name = format!("wide-{number}.png");
        assert!(named.iter().any(|text| text.contains(&name)), "{named:?}");
    }
    drop(loader);

    wide("wide-2.png", false);
    let mut loader = Loader::start(dataset(), config.clone()).unwrap();
    let batches = take(&mut loader, 20);
    assert!(batches.iter().any(|batch| batch.shape == [2, 3, 8, 16]));
    drop(loader);

    for number in 0..6 {
        fs::write(dir.path().join(format!("{number:02}.png")), "no image").unwrap();
    }
    wide("wide-2.png", true);
    let error = Loader::start(dataset(), config)
        .unwrap()
        .next()
        .unwrap()
        .unwrap_err();
    assert!(
        error.to_string().contains("none of the 9 samples"),
        "{error}"
    );
}

#[test]
fn vanished_data_end_the_run_and_one_missing_file_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    write_greys(&data, 60);

    let mut one_missing = loader(&data, 4, 2, 0);
    fs::remove_file(data.join("07.png")).unwrap();
    take(&mut one_missing, 30);
    let skipped = one_missing.take_skipped();
    assert!(skipped.len() <= 1, "{skipped:?}");
    drop(one_missing);

    let end = |loader: &mut Loader| {
        let mut batches = 0;
        loop {
            match loader.next().unwrap() {
                Ok(_) => batches += 1,
                Err(error) => return (batches, error),
            }
            assert!(batches < 30, "the run goes on without data");
        }
    };
    // A folder that is gone, and one that is empty since nothing is mounted on it any more.
    for leave_folder in [false, true] {
        let mut loader = loader(&data, 4, 2, 0);
        take(&mut loader, 2);
        let known = loader.skipped_count();
        fs::rename(&data, dir.path().join("elsewhere")).unwrap();
        if leave_folder {
            fs::create_dir(&data).unwrap();
        }
        let (_, error) = end(&mut loader);
        assert!(
            matches!(&error, DataError::Vanished { path } if *path == data),
            "{error}"
        );
        assert!(error.help().contains("--resume"));
        assert!(loader.skipped_count() <= known + 1);
        assert!(loader.next().is_none());
        if leave_folder {
            fs::remove_dir(&data).unwrap();
        }
        fs::rename(dir.path().join("elsewhere"), &data).unwrap();
    }
}

#[test]
fn shards_give_the_batches_of_the_folder_that_they_were_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, shards) = (dir.path().join("folder"), dir.path().join("shards"));
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(shards.join("more")).unwrap();
    write_greys(&folder, 12);
    fs::write(folder.join("03.txt"), "three").unwrap();
    fs::write(folder.join("05.png"), "no image").unwrap();
    let read = |number: usize| {
        let name = format!("{number:02}.png");
        let bytes = fs::read(folder.join(&name)).unwrap();
        (name, bytes)
    };
    let images: Vec<(String, Vec<u8>)> = (0..12).map(read).collect();
    let members = |numbers: std::ops::Range<usize>| -> Vec<(&str, &[u8])> {
        (images[numbers].iter())
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
            .collect()
    };
    write_tar(&shards.join("more/a.tar"), &members(6..12));
    let captions: &[(&str, &[u8])] = &[("03.txt", b"three")];
    write_tar(
        &shards.join("b.tar"),
        &[&members(0..4), captions, &members(4..6)].concat(),
    );

    let mut from_folder = loader(&folder, 5, 2, 0);
    let mut from_shards = loader(&shards, 5, 3, 0);
    let expected = take(&mut from_folder, 9);
    assert_eq!(take(&mut from_shards, 9), expected);
    let mut resumed = loader(&shards, 5, 2, 4);
    assert_eq!(take(&mut resumed, 5), expected[4..]);
    let message = from_shards.take_skipped().remove(0).error.to_string();
    assert!(message.contains("b.tar/05.png isn't an image"), "{message}");

    let names = |path: &Path| {
        let (training, validation) = ImageFolder::scan(path).unwrap().split(0.3);
        let names = |part: &ImageFolder| -> Vec<String> {
            (part.entries().iter())
                .map(|entry| entry.name.clone())
                .collect()
        };
        (names(&training), names(&validation))
    };
    assert_eq!(names(&shards), names(&folder));
    assert!(!names(&shards).1.is_empty());
}

#[test]
fn a_damaged_shard_is_used_as_far_as_it_goes_unless_strict() {
    let dir = tempfile::tempdir().unwrap();
    let image = png(9);
    let path = dir.path().join("a.tar");
    write_tar(&path, &[("1.png", &image), ("2.png", &image)]);
    let bytes = fs::read(&path).unwrap();
    let cut = 512 + image.len().next_multiple_of(512) + 512 + 20;
    fs::write(&path, &bytes[..cut]).unwrap();

    let config = DataConfig {
        path: Some(path.clone()),
        resolution: 8,
        validation: 0.0,
        ..Default::default()
    };
    let (training, _) = config.open(0).unwrap();
    assert_eq!((training.len(), training.damage().len()), (1, 1));
    assert!(training.get(0, 0).is_ok());

    let strict = DataConfig {
        strict: true,
        ..config
    };
    let error = strict.open(0).unwrap_err();
    assert!(
        matches!(&error, DataError::Strict { source } if source.to_string().contains("a.tar is damaged at byte")),
        "{error}"
    );
}
