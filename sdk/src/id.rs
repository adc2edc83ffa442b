//! Item keys (the app's own ids) and rows (ours).

use crate::error::{Error, Result};

/// Position of an item in the item table, `0..N`. Valid for one version of one bundle only:
/// store item keys, never rows.
pub type Row = u32;

/// Longest accepted item key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1024;

/// Longest accepted behavior, modality or attribute name, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 64;

/// Checks an item key given by the host: 1 to [`MAX_KEY_BYTES`] bytes.
pub(crate) fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Error::argument(format!(
            "an item key has {} bytes, accepted are 1 to {MAX_KEY_BYTES}",
            key.len()
        )));
    }
    Ok(())
}

/// Whether `name` can name a modality, behavior or attribute column.
///
/// Dots are kept for the format's own suffixes (`attr.<name>.values.bytes`).
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.contains('.')
        && !name.chars().any(char::is_control)
}

/// Whether `name` is a plain file name: one component, nothing a path could hide in.
pub(crate) fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_never_leave_the_folder() {
        for good in ["items.safetensors", "user_tower.onnx", "a-1"] {
            assert!(is_file_name(good), "{good}");
        }
        for bad in [
            "", ".", "..", "../x", "a/b", "a\\b", "/etc", ".hidden", "c:d", "a b",
        ] {
            assert!(!is_file_name(bad), "{bad}");
        }
    }

    #[test]
    fn names_have_no_dots() {
        assert!(is_name("category") && is_name("text_minilm") && is_name("prix €"));
        assert!(!is_name("") && !is_name("a.values") && !is_name("a\nb"));
        assert!(!is_name(&"x".repeat(MAX_NAME_BYTES + 1)));
    }
}
