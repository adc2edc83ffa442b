// The Android library. `./build-libraries` makes src/main/jniLibs first; then
// `gradle publishToMavenLocal`, or `publish` with a repository of your own.
//
// Not run by the project's CI, which has no Android SDK: the Kotlin sources are compiled and tested
// there on the JVM, and a library for arm64 is linked against stubs and checked (check-library).
plugins {
    id("com.android.library") version "8.13.0" // 8.5.1 or newer: aligns libraries in the APK to 16 KB
    id("org.jetbrains.kotlin.android") version "2.2.20"
    id("maven-publish")
}

group = "dev.tercet"
version = providers.exec {
    commandLine("sh", "-c", "sed -n '/^\\[workspace.package\\]/,/^\\[/s/^version = \"\\(.*\\)\"/\\1/p' ../../Cargo.toml")
}.standardOutput.asText.get().trim()

android {
    namespace = "dev.tercet"
    compileSdk = 36
    defaultConfig {
        minSdk = 24
        // In the library's own proguard file they would not reach the app.
        consumerProguardFiles("consumer-rules.pro")
    }
    sourceSets["main"].kotlin.srcDirs("../kotlin/src/main/kotlin", "../kotlin/generated")
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    publishing {
        singleVariant("release") { withSourcesJar() }
    }
}

kotlin {
    compilerOptions { jvmTarget.set(org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_17) }
}

dependencies {
    // 5.17 is the first whose own native library has 16 KB pages. The AAR, not the JAR: it
    // carries that library for Android.
    api("net.java.dev.jna:jna:5.18.1@aar")
    api("org.jetbrains.kotlinx:kotlinx-coroutines-core:1.10.2")
}

val abis = listOf("arm64-v8a", "armeabi-v7a", "x86_64")

tasks.register("checkLibraries") {
    doLast {
        val missing = abis.filter { !file("src/main/jniLibs/$it/libtercet_ffi.so").exists() }
        check(missing.isEmpty()) { "no native library for $missing: run ./build-libraries first (needs the NDK)" }
    }
}
tasks.named("preBuild") { dependsOn("checkLibraries") }

afterEvaluate {
    publishing {
        publications {
            register<MavenPublication>("release") {
                artifactId = "tercet-android"
                from(components["release"])
                pom {
                    name.set("Tercet")
                    description.set("Recommendations on the device")
                    licenses {
                        license { name.set("MIT OR Apache-2.0") }
                    }
                }
            }
        }
    }
}
