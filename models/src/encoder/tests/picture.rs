//! Files of all kinds, and files that only pretend.

use std::io::Write;

use flate2::{Compression, Crc, write::ZlibEncoder};
use image::{ExtendedColorType, ImageEncoder as _, codecs};

use super::super::picture::{Picture, Unreadable};

/// A PNG of one `IDAT` with unfiltered rows, byte for byte, so that it can lie.
pub(crate) fn png(
    (width, height): (u32, u32),
    (depth, color): (u8, u8),
    extra: &[(&[u8; 4], &[u8])],
    rows: &[&[u8]],
) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        let mut crc = Crc::new();
        crc.update(kind);
        crc.update(data);
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(kind);
        file.extend(data);
        file.extend(crc.sum().to_be_bytes());
    };
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([depth, color, 0, 0, 0]);
    chunk(b"IHDR", &header);
    for (kind, data) in extra {
        chunk(kind, data);
    }
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
    for row in rows {
        packed.write_all(&[0]).expect("memory");
        packed.write_all(row).expect("memory");
    }
    chunk(b"IDAT", &packed.finish().expect("memory"));
    chunk(b"IEND", &[]);
    file
}

fn decoded(bytes: &[u8]) -> Vec<u8> {
    Picture::decode(bytes).expect("a picture").rgb().to_vec()
}

/// A JPEG of 24 x 16 pixels of one colour with its segments.
fn jpeg(color: [u8; 3]) -> Vec<u8> {
    let mut file = Vec::new();
    let pixels = color.repeat(24 * 16);
    codecs::jpeg::JpegEncoder::new_with_quality(&mut file, 95)
        .write_image(&pixels, 24, 16, ExtendedColorType::Rgb8)
        .expect("memory");
    file
}

#[test]
fn every_kind_of_png_becomes_rgb() {
    let rgb = png((2, 1), (8, 2), &[], &[&[1, 2, 3, 250, 251, 252]]);
    assert_eq!(decoded(&rgb), [1, 2, 3, 250, 251, 252]);
    let grey = png((2, 1), (8, 0), &[], &[&[7, 200]]);
    assert_eq!(decoded(&grey), [7, 7, 7, 200, 200, 200]);
    let bits = png((8, 1), (1, 0), &[], &[&[0b0100_0000]]);
    assert_eq!(decoded(&bits)[..6], [0, 0, 0, 255, 255, 255]);
    // 0x8040 / 257 = 127.75 rounds to 128.
    let deep = png((1, 1), (16, 0), &[], &[&[0x80, 0x40]]);
    assert_eq!(decoded(&deep), [128, 128, 128]);
    let deep = png((1, 1), (16, 2), &[], &[&[255, 255, 0, 0, 1, 1]]);
    assert_eq!(decoded(&deep), [255, 0, 1]);
    let palette = (b"PLTE", &[10, 20, 30, 40, 50, 60][..]);
    let indexed = png((2, 1), (8, 3), &[palette], &[&[1, 0]]);
    assert_eq!(decoded(&indexed), [40, 50, 60, 10, 20, 30]);
    // The second colour of the palette is transparent: white.
    let clear = (b"tRNS", &[255, 0][..]);
    let indexed = png((2, 1), (8, 3), &[palette, clear], &[&[1, 0]]);
    assert_eq!(decoded(&indexed), [255, 255, 255, 10, 20, 30]);
    // (100 · 51 + 255 · 204) / 255 = 224.
    let alpha = png((2, 1), (8, 6), &[], &[&[9, 9, 9, 0, 100, 0, 255, 51]]);
    assert_eq!(decoded(&alpha), [255, 255, 255, 224, 204, 255]);
    let alpha = png((1, 1), (8, 4), &[], &[&[40, 255]]);
    assert_eq!(decoded(&alpha), [40, 40, 40]);
}

#[test]
fn jpeg_and_webp_are_read_and_turned() {
    let file = jpeg([200, 30, 60]);
    let picture = Picture::decode(&file).expect("a picture");
    assert_eq!((picture.width(), picture.height()), (24, 16));
    let close = |p: &[u8]| p.iter().zip([200, 30, 60]).all(|(a, b)| a.abs_diff(b) < 4);
    assert!(picture.rgb().chunks_exact(3).all(close));

    // EXIF with the one entry that asks for a quarter turn.
    let mut turned = file[..2].to_vec();
    turned.extend(
        b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
    );
    turned.extend(&file[2..]);
    let picture = Picture::decode(&turned).expect("a picture");
    assert_eq!((picture.width(), picture.height()), (16, 24));

    let mut webp = Vec::new();
    codecs::webp::WebPEncoder::new_lossless(&mut webp)
        .write_image(&[1, 2, 3, 4, 5, 6], 1, 2, ExtendedColorType::Rgb8)
        .expect("memory");
    assert_eq!(decoded(&webp), [1, 2, 3, 4, 5, 6]);
}

/// Whatever is missing or wrong, there is a reason and no panic.
#[test]
fn cut_and_damaged_files_are_refused() {
    let rows: Vec<Vec<u8>> = (0..8u8).map(|y| vec![y; 8]).collect();
    let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    let grey = png((8, 8), (8, 0), &[], &rows);
    for length in 0..grey.len() - 12 {
        assert!(Picture::decode(&grey[..length]).is_err(), "png {length}");
    }
    let file = jpeg([9, 99, 199]);
    for length in 0..file.len() {
        assert!(Picture::decode(&file[..length]).is_err(), "jpeg {length}");
    }
    // One byte changed may be seen or not; it is never a panic.
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 0x55;
        let _ = Picture::decode(&damaged);
    }
    for at in 0..grey.len() {
        let mut damaged = grey.clone();
        damaged[at] ^= 0x55;
        let _ = Picture::decode(&damaged);
    }
    for (bytes, name) in [
        (&b""[..], "empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg"),
        (b"GIF89a\x01\0\x01\0\0\0\0;", "gif"),
    ] {
        let refused = Picture::decode(bytes);
        assert!(matches!(refused, Err(Unreadable::Format)), "{name}");
    }
}

/// A few bytes that declare gigabytes are refused before anything is allocated.
#[test]
fn declared_sizes_are_bounded() {
    for sides in [(60_000, 60_000), (1, 2_000_000_000), (16_384, 16_384)] {
        let bomb = png(sides, (8, 2), &[], &[&[0; 64]]);
        match Picture::decode(&bomb) {
            Err(Unreadable::Large { width, height }) => assert_eq!((width, height), sides),
            other => panic!("{sides:?}: {other:?}"),
        }
    }
    let mut bomb = jpeg([0; 3]);
    let frame = bomb.windows(2).position(|m| m == [0xff, 0xc0]);
    let at = frame.expect("a baseline frame") + 5;
    bomb[at..at + 4].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let refused = Picture::decode(&bomb);
    assert!(matches!(
        refused,
        Err(Unreadable::Large { width: 65535, .. })
    ));
    // No pixels at all.
    assert!(Picture::decode(&png((0, 4), (8, 0), &[], &[])).is_err());
}

#[test]
fn files_that_cannot_be_read_say_so() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let missing = Picture::open(&dir.path().join("none.png"));
    assert!(matches!(missing, Err(Unreadable::Io(_))));
    assert!(Picture::open(dir.path()).is_err());
    let long = dir.path().join("long.png");
    let file = std::fs::File::create(&long).expect("writable");
    file.set_len((64 << 20) + 1).expect("sparse");
    assert!(matches!(Picture::open(&long), Err(Unreadable::Long)));
}
