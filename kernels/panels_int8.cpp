// The sampler's products with weights in int8.
#include "panels.hpp"

template rngru::Multiply<rngru::Int8>* rngru::product_of<rngru::Int8, rngru::MR>(int64_t texts, int64_t vectors);
