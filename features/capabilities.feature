Feature: What can be asked for is told from what runs now

  @ORCHD-CAP-1
  Scenario: Engines, pools and models of a daemon that has everything loaded
    Given a pool "words" with 3 slots
    And its context holds 512 tokens
    And a pool "vectors" with 1 slot
    And its context holds 128 tokens
    And it offers embedding
    And the pool "words" is ready
    And the pool "vectors" is ready
    When alice asks for "/v1/capabilities"
    Then the answer is 200
    And the answer says:
      | engines.0.engine              | mock                       |
      | engines.0.engine_version      | mock-1                     |
      | engines.0.ctx_max             | 512                        |
      | engines.0.max_tokens_out      | 511                        |
      | engines.0.concurrency         | 4                          |
      | engines.0.supported_workloads | ["completion","embedding"] |
      | pools.0.id                    | words                      |
      | pools.0.ready                 | true                       |
      | pools.0.slots_total           | 3                          |
      | pools.0.engine_versions       | ["mock-1"]                 |
      | pools.0.max_tokens_out        | 511                        |
      | pools.0.workloads             | ["completion"]             |
      | pools.1.id                    | vectors                    |
      | pools.1.ctx                   | 128                        |
      | models.0.model_ref            | mock:words                 |
      | models.0.pool_ids             | ["words"]                  |
      | models.0.state                | Active                     |

  @ORCHD-CAP-2
  Scenario: The version is that of the contract
    Given a pool "words" with 1 slot
    When alice asks for "/v1/capabilities"
    Then the answer names the contract's version

  @ORCHD-CAP-3
  Scenario: Who has the answer is not sent it again until it changes
    Given a pool "lazy" with 1 slot
    And its model is loaded at first use
    When alice asks for "/v1/capabilities"
    And alice asks for "/v1/capabilities" again, with the ETag that came
    Then the answer is 304
    When alice submits "first":
      | prompt     | Once upon a time |
      | max_tokens | 1                |
    And "first" is done
    And alice asks for "/v1/capabilities"
    And alice asks for "/v1/capabilities" again, with the ETag that came
    Then the answer is 304

  @ORCHD-CAP-1 @ORCHD-CAP-3
  Scenario: An answer that has changed has another ETag, and features are told for each pool
    Given a pool "lazy" with 1 slot
    And its model is loaded at first use
    And a pool "vectors" with 1 slot
    And it offers embedding
    And the pool "vectors" is ready
    When alice asks for "/v1/capabilities"
    Then the answer says:
      | pools.1.features | ["sse","cancel","resume","idempotent_submit","dry_run","sessions","budgets"] |
    When alice submits "first" to pool "lazy":
      | prompt     | Once upon a time |
      | max_tokens | 1                |
    And "first" is done
    And alice asks for "/v1/capabilities" with the ETag of before
    Then the answer is 200
    And the answer says:
      | pools.0.state | ready |

  @ORCHD-CAP-1
  Scenario: What is not loaded yet is not made up, and looking loads nothing
    Given a pool "lazy" with 2 slots
    And its model is loaded at first use
    When alice asks for "/v1/capabilities"
    Then the answer says:
      | engines.0.engine_version | null    |
      | engines.0.ctx_max        | 0       |
      | pools.0.state            | stopped |
      | pools.0.ready            | false   |
      | pools.0.ctx              | null    |
    When alice submits "first":
      | prompt     | Once upon a time |
      | max_tokens | 1                |
    And "first" is done
    And alice asks for "/v1/capabilities"
    Then the answer says:
      | engines.0.engine_version | mock-1 |
      | engines.0.ctx_max        | 4096   |
      | pools.0.state            | ready  |
      | pools.0.ready            | true   |
      | pools.0.ctx              | 4096   |

  @ORCHD-CAP-1 @ORCHD-TASK-4
  Scenario: What is promised is what is done
    Given a pool "words" with 1 slot
    And its context holds 64 tokens
    And the pool "words" is ready
    When alice submits "too long":
      | prompt     | a  |
      | max_tokens | 64 |
    Then the answer is 400 INVALID_PARAMS
    When alice submits "as promised":
      | prompt     | a  |
      | max_tokens | 62 |
    Then the answer is 202
    And "as promised" is done

  @ORCHD-CAP-1 @ORCHD-CAP-3 @ORCHD-DRAIN-1
  Scenario: A drained pool is told, and the answer has another ETag
    Given a pool "words" with 1 slot
    And the pool "words" is ready
    When alice asks for "/v1/capabilities"
    And the operator drains "words" within 0 ms
    And alice asks for "/v1/capabilities" with the ETag of before
    Then the answer is 200
    And the answer says:
      | pools.0.ready | false |

  @ORCHD-CAP-1 @ORCHD-CAP-3 @ORCHD-RELOAD-1
  Scenario: A model that a reload brought is told in place of the old one
    Given a pool "words" with 1 slot
    And the pool "words" is ready
    When alice asks for "/v1/capabilities"
    And the operator gives "words" the model "mock:other" and waits
    And alice asks for "/v1/capabilities" with the ETag of before
    Then the answer is 200
    And the answer says:
      | pools.0.model_ref  | mock:other |
      | models.0.model_ref | mock:other |
      | models.0.pool_ids  | ["words"]  |

  @ORCHD-CAP-1 @ORCHD-AUTH-1
  Scenario: What is told is for those with a key
    Given a pool "words" with 1 slot
    When a stranger asks for "/v1/capabilities"
    Then the answer is 401 UNAUTHORIZED

  @ORCHD-CAP-1 @ORCHD-AUTH-3
  Scenario: The limits of requests are told
    Given a pool "words" with 1 slot
    And the pool "words" is ready
    When alice asks for "/v1/capabilities"
    Then the answer says:
      | engines.0.rate_limits.streams_per_key | 1024 |
      | pools.0.sampler_profile_version       | v1   |

  @ORCHD-CAP-1
  Scenario: Two pools of one model are told as one model
    Given a pool "words" with 1 slot
    And a pool "more" with 2 slots
    And the pool "words" is ready
    And the pool "more" is ready
    When the operator gives "more" the model "mock:words" and waits
    And alice asks for "/v1/capabilities"
    Then the answer says:
      | models.0.model_ref    | mock:words       |
      | models.0.pool_ids     | ["words","more"] |
      | engines.0.concurrency | 3                |
