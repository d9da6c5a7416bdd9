Feature: Pools share the memory of devices

  Background:
    Given a device "host" with 10 bytes
    And a pool "words" with 1 slot
    And it takes 10 bytes of "host"
    And its tokens take 10 ms
    And its model takes 50 ms to load
    And its model is loaded at first use
    And a pool "verses" with 1 slot
    And it takes 10 bytes of "host"
    And its tokens take 10 ms
    And its model takes 50 ms to load
    And its model is loaded at first use

  @ORCHD-MEM-1 @ORCHD-MEM-2
  Scenario: Who has work is loaded, in the place of whoever has none
    When alice asks for "/readyz"
    Then the answer is 200
    And the pool "words" is unloaded
    When alice submits "first" to pool "words":
      | prompt     | Once upon a time |
      | max_tokens | 20               |
    And alice submits "second" to pool "verses":
      | prompt     | Once upon a time |
      | max_tokens | 20               |
    Then "second" waits because "is not in memory"
    And all of them are done
    And the pool "verses" is loaded
    And the pool "words" is unloaded
    And the metrics are:
      | pool_loads_total{pool_id="words",reason="wanted"}     | 1 |
      | pool_loads_total{pool_id="verses",reason="wanted"}    | 1 |
      | pool_unloads_total{pool_id="words",reason="evicted"}  | 1 |

  @ORCHD-MEM-1
  Scenario: Who rests leaves
    Given it leaves after 100 ms of rest
    When alice submits "only" to pool "verses":
      | prompt     | Once upon a time |
      | max_tokens | 5                |
    Then "only" is done
    And the pool "verses" is unloaded
    And the metrics are:
      | pool_unloads_total{pool_id="verses",reason="idle"} | 1 |

  @ORCHD-MEM-3
  Scenario: What can never fit is refused with what it needs
    Given a pool "epic" with 1 slot
    And it takes 2048 bytes of "host"
    When alice submits "large" to pool "epic":
      | prompt     | Once upon a time |
      | max_tokens | 5                |
    Then the answer is 503 POOL_UNAVAILABLE
    And the message tells "it needs 2 KiB of host, which has 10 B for models"
    And the pool "epic" is unavailable
    When alice asks for "/v1/pools/epic/health"
    Then the answer says:
      | last_error.cause | out_of_host_memory |
      | live             | false         |

  @ORCHD-MEM-6
  Scenario: A device is lent and comes back
    When alice submits and streams "long" to pool "words":
      | prompt      | Once upon a time |
      | max_tokens  | 60               |
      | determinism | strict           |
    And "long" has received 2 tokens
    And alice lends "host" within 10 ms
    Then the answer is 403 FORBIDDEN
    When the operator lends "host" within 10 ms
    Then the answer is 202
    And the answer says:
      | lent_bytes | 10 |
    When the operator lends "host" within 10 ms
    Then the answer is 409 CONFLICT
    When the operator lends "gpu-9" within 10 ms
    Then the answer is 404 NOT_FOUND
    And "long" is queued
    And the pool "words" is waiting_for_memory
    When alice asks for "/v1/devices"
    Then the answer is 200
    When the operator sends POST "/v1/devices/host/return"
    Then the answer is 202
    And the stream "long" ends with end
    And the end event of "long" says:
      | tokens_out    | 60 |
      | continuations | 1  |

  @ORCHD-MEM-6
  Scenario: A loan outlives the daemon
    When the operator lends "host" within 0 ms
    Then the answer is 202
    When the daemon is stopped
    And the daemon starts again
    And alice submits "patient" to pool "words":
      | prompt     | Once upon a time |
      | max_tokens | 5                |
    Then the answer is 202
    And the pool "words" is waiting_for_memory
    When the operator sends POST "/v1/devices/host/return"
    Then "patient" is done

  @ORCHD-MEM-7
  Scenario: A surge needs room for both models, recreate does not
    When alice submits "first" to pool "words":
      | prompt     | Once upon a time |
      | max_tokens | 5                |
    Then "first" is done
    When the operator surges "words" to the model "mock:other" within 100 ms
    Then the answer is 202
    And the reload of "words" is failed
    When the operator asks for "/v1/pools/words/health"
    Then the answer says:
      | model_ref | mock:words |
      | residence | loaded     |
    When the operator gives "words" the model "mock:other" within 100 ms
    Then the answer is 202
    And the reload of "words" is done
