//! Pickles by hand that would hurt a reader which believed them.

use std::fs;
use std::path::Path;

use super::super::{Tensors, WeightsError, open};
use super::legacy::MAGIC;

/// Opens a file of PyTorch's old format whose object is made by `program`; if there is a `storage`, it is called `a`.
fn opened(program: &[u8], storage: &[f32]) -> Result<Tensors, WeightsError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pickle.pt");
    let mut file = MAGIC.to_vec();
    file.extend(b"\x80\x02M\xe9\x03.");
    file.extend(b"\x80\x02}X\x0d\0\0\0little_endian\x88s.");
    file.extend(program);
    if storage.is_empty() {
        file.extend(b"\x80\x02].");
    } else {
        file.extend(b"\x80\x02]X\x01\0\0\0aa.");
        file.extend((storage.len() as u64).to_le_bytes());
        file.extend(storage.iter().flat_map(|value| value.to_le_bytes()));
    }
    fs::write(&path, file).unwrap();
    open(Path::new(&path))
}

/// A dictionary with `t`, a tensor of storage `a` of `len` floats with these offset, sides and strides.
fn tensor(len: i32, offset: i32, sides: &[i32], strides: &[i32]) -> Vec<u8> {
    let int = |number: i32| [b"J".as_slice(), &number.to_le_bytes()].concat();
    let tuple = |numbers: &[i32]| {
        let mut program = b"(".to_vec();
        program.extend(numbers.iter().flat_map(|number| int(*number)));
        program.push(b't');
        program
    };
    let mut program = b"\x80\x02}X\x01\0\0\0tctorch._utils\n_rebuild_tensor_v2\n(".to_vec();
    program.extend(b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0aX\x03\0\0\0cpu");
    program.extend(int(len));
    program.extend(b"NtQ");
    program.extend(int(offset));
    program.extend(tuple(sides));
    program.extend(tuple(strides));
    program.extend(b"\x89NtRs.");
    program
}

#[test]
fn views_may_not_leave_their_storage() {
    let storage = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
    let good = opened(&tensor(6, 1, &[2, 2], &[3, 1]), &storage).unwrap();
    let data: Vec<f32> = good.data("t").unwrap().iter().collect();
    assert_eq!(data, [1.0, 2.0, 4.0, 5.0]);
    for program in [
        tensor(6, 2, &[2, 2], &[3, 1]),
        tensor(6, 7, &[0], &[1]),
        tensor(7, 0, &[6], &[1]),
        tensor(6, -1, &[2], &[1]),
        tensor(6, 0, &[-2], &[1]),
        tensor(6, 0, &[2], &[-1]),
        tensor(6, 0, &[2], &[1, 1]),
        tensor(6, 0, &[i32::MAX, i32::MAX, i32::MAX], &[0, 0, 0]),
        tensor(6, 0, &[2, 2], &[i32::MAX, i32::MAX]),
        // A gigabyte of copies of a number.
        tensor(6, 0, &[1 << 28], &[0]),
    ] {
        let error = opened(&program, &storage).unwrap_err();
        assert!(matches!(error, WeightsError::Invalid { .. }), "{error}");
    }
}

#[test]
fn nesting_sharing_and_cycles_cost_nothing() {
    let deep = [b"]".repeat(10_000), b"a".repeat(9_999)].concat();
    let doubling = b"2\x86".repeat(10_000);
    for object in [
        deep,
        // A tuple of the same tuple twice, and so on.
        [b")".as_slice(), &doubling].concat(),
        // A list in itself.
        b"]q\x01h\x01a".to_vec(),
        // An object made by itself.
        b"N)\x81q\x01)R".to_vec(),
    ] {
        let program = [b"\x80\x02}X\x01\0\0\0k".as_slice(), &object, b"s."].concat();
        let error = opened(&program, &[]).unwrap_err();
        assert!(matches!(error, WeightsError::Unsupported { .. }), "{error}");
    }
}

#[test]
fn descriptions_larger_than_the_file_are_refused() {
    for program in [
        b"}".repeat(100_000),
        b"(".repeat(200_000),
        b"N".repeat(200_000),
        [b"N".as_slice(), &b"q\x01r\xff\xff\xff\xff".repeat(100_000)].concat(),
        [b"]".as_slice(), &b"Na".repeat(200_000)].concat(),
    ] {
        let program = [b"\x80\x02".as_slice(), &program, b"."].concat();
        let error = opened(&program, &[]).unwrap_err().to_string();
        assert!(error.contains("a file of its size"), "{error}");
    }
    for length in [
        b"X\xff\xff\xff\xff".as_slice(),
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\x7f",
    ] {
        let program = [b"\x80\x02".as_slice(), length].concat();
        assert!(opened(&program, &[]).is_err());
    }
}

#[test]
fn programs_that_misuse_the_stack_are_refused() {
    for program in [
        b"".as_slice(),
        b".",
        b"0",
        b"a",
        b"s",
        b"u",
        b"t",
        b"(0.",
        b"N(\x85.",
        b"NR",
        b"Q",
        b"NQ",
        b"h\x01",
        b"Na",
        b"NNNs",
        b"}(Nu",
        b"NN\x93",
        b"b",
        b"P0\n",
        b"\x82\x01",
    ] {
        let program = [b"\x80\x02".as_slice(), program].concat();
        let error = opened(&program, &[]).unwrap_err();
        assert!(error.to_string().contains("pickle.pt"), "{error}");
    }
}
