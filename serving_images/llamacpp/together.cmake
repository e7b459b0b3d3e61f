# Included by llama.cpp's own project; what its targets are given takes place once all of them are known.
cmake_language(DEFER CALL set_target_properties llama-common mtmd server-context llama-server-impl PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
cmake_language(DEFER CALL set_source_files_properties common/json.cpp TARGET_DIRECTORY llama-common PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
cmake_language(DEFER CALL set_source_files_properties tools/mtmd/mtmd-helper.cpp tools/mtmd/mtmd-helper-gen.cpp TARGET_DIRECTORY mtmd PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
